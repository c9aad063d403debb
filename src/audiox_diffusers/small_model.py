"""
An AudioX that is small enough to be trained on two CPU cores in minutes: for tests and tutorials.

Its encoders are random and frozen, its VAE is set by hand, its conditioner and transformer are to be trained.
"""

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, T5Config, T5EncoderModel

from .mdct import mdct_basis
from .models import AudioXAutoencoderOobleck, AudioXConditioner, AudioXTransformer2DModel
from .pipelines import AudioXPipeline
from .random_model import create_tokenizer
from .schedulers import AudioXDPMSolverSDEScheduler

SAMPLING_RATE = 8000
# Samples between latent frames, and latent channels: one for each coefficient of a frame's transform.
HOP_LENGTH = 128
NUM_FRAMES = 125
CONDITION_DIM = 64
VIDEO_FPS = 5.0
NUM_VIDEO_FRAMES = 10
IMAGE_SIZE = 32
PATCH_SIZE = 8

# The standard deviation of a coefficient at frequency `f` in Hz is about `_LEVEL / (1 + f / _KNEE)`.
_LEVEL = 0.3
_KNEE = 500.0
# Stands for zero in weights: weight norm divides by the norm of each row.
_NEXT_TO_NOTHING = 1e-12


def create_small_pipeline(seed: int = 0) -> AudioXPipeline:
    """
    A whole pipeline that needs no files: windows of 2 s of 8 kHz mono in 125 latent frames of 128 channels, 10 frames
    of video at 5 a second, 128 letters of text and 2 s of audio prompt. Until it is trained it makes noise.

    Text and pictures go through a T5 and a CLIP with random weights, which tell captions and pictures apart and know
    nothing of what they mean. They are meant to stay as they are, and so is the VAE: see [`create_mdct_vae`].

    Args:
        seed: of the weights. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = create_tokenizer()
        pipe = AudioXPipeline(
            transformer=AudioXTransformer2DModel(
                sample_size=NUM_FRAMES,
                in_channels=HOP_LENGTH,
                num_layers=2,
                attention_head_dim=64,
                num_attention_heads=4,
                num_key_value_attention_heads=2,
                cross_attention_input_dim=CONDITION_DIM,
                cross_attention_dim=CONDITION_DIM,
                time_proj_dim=64,
            ),
            conditioner=AudioXConditioner(
                condition_dim=CONDITION_DIM,
                num_video_frames=NUM_VIDEO_FRAMES,
                num_frame_tokens=1 + (IMAGE_SIZE // PATCH_SIZE) ** 2,
                num_video_tokens=16,
                num_temporal_layers=1,
                num_temporal_heads=1,
                video_fps=VIDEO_FPS,
                latent_channels=HOP_LENGTH,
                num_audio_latents=NUM_FRAMES,
                audio_prompt_samples=NUM_FRAMES * HOP_LENGTH,
            ),
            vae=create_mdct_vae(),
            scheduler=AudioXDPMSolverSDEScheduler(),
            text_encoder=_create_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            image_encoder=CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=CONDITION_DIM,
                    intermediate_size=2 * CONDITION_DIM,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    image_size=IMAGE_SIZE,
                    patch_size=PATCH_SIZE,
                    projection_dim=CONDITION_DIM,
                )
            ),
            default_num_inference_steps=25,
            default_guidance_scale=1.0,
        )
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipe


@torch.no_grad()
def create_mdct_vae() -> AudioXAutoencoderOobleck:
    """
    A VAE without training. Its weights are set so that all it computes is a modified discrete cosine transform with
    sine windows (Princen, Johnson and Bradley, 1987) and its inverse: a latent frame is the spectrum of 256 samples
    around 128 of its own, each channel divided by a standard deviation that falls with the frequency. Overlapping
    halves cancel each other's aliasing, so that sounds come back as they were, but for the first and last 64 samples.
    The posterior's standard deviation is 1e-4.
    """
    vae = AudioXAutoencoderOobleck(
        encoder_hidden_size=1,
        downsampling_ratios=[HOP_LENGTH],
        channel_multiples=[HOP_LENGTH],
        decoder_channels=1,
        decoder_input_channels=HOP_LENGTH,
        audio_channels=1,
        sampling_rate=SAMPLING_RATE,
    )
    for name, parameter in vae.named_parameters():
        if name.endswith("alpha"):
            # Snake is x + sin^2(exp(alpha) x) / exp(beta): this far down the sine vanishes beside x.
            parameter.fill_(-20.0)
        elif name.endswith("bias"):
            parameter.zero_()
        elif "res_unit" in name and "conv2" in name:
            parameter.fill_(_NEXT_TO_NOTHING)

    basis = mdct_basis(HOP_LENGTH)
    frequency = (torch.arange(HOP_LENGTH) + 0.5) / HOP_LENGTH * SAMPLING_RATE / 2
    scale = _LEVEL / (1 + frequency / _KNEE)

    vae.encoder.conv1.weight.copy_(_delta(torch.ones(1, 1), 7))
    vae.encoder.block[0].conv1.weight.copy_(basis[:, None])
    nothing = torch.full((HOP_LENGTH, HOP_LENGTH), _NEXT_TO_NOTHING)
    vae.encoder.conv2.weight.copy_(_delta(torch.cat((torch.diag(1 / scale), nothing)), 3))
    vae.encoder.conv2.bias[HOP_LENGTH:] = -20.0

    vae.decoder.conv1.weight.copy_(_delta(torch.diag(scale), 7))
    vae.decoder.block[0].conv_t1.weight.copy_(basis[:, None])
    vae.decoder.conv2.weight.copy_(_delta(torch.ones(1, 1), 7))
    return vae


def _delta(matrix: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """`[out, in]` -> `[out, in, kernel_size]`: the convolution that applies the matrix to each sample by itself."""
    weight = torch.zeros(*matrix.shape, kernel_size)
    weight[..., kernel_size // 2] = matrix
    return weight


@torch.no_grad()
def _create_text_encoder(vocab_size: int) -> T5EncoderModel:
    config = T5Config(vocab_size=vocab_size, d_model=CONDITION_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    text_encoder = T5EncoderModel(config)
    # Random biases are so weak that every letter would attend to all others alike, and a caption be its mix of letters.
    text_encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight *= 30
    return text_encoder
