"""
Small pipelines without files, for tests, tutorials and benchmarks.

[`create_small_pipeline`] can be trained on two CPU cores in minutes. [`create_random_pipeline`] has the window, rates and
prompt sizes of the released models, and generates noise.
"""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from .mdct import mdct_basis
from .models import AudioXAutoencoderOobleck, AudioXConditioner, AudioXTransformer2DModel
from .pipelines import AudioXPipeline
from .schedulers import AudioXDPMSolverSDEScheduler

# The small pipeline. Each of the HOP_LENGTH latent channels holds one coefficient of a frame's transform.
SAMPLING_RATE = 8000
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
# Replaces zero in weights, because weight norm divides by the norm of each row.
_NEARLY_ZERO = 1e-12

# Standard deviation of the random pipeline's noise. Its peaks, about ten times as high, stay within -1..1.
_NOISE_LEVEL = 0.07

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:!?'-"


def create_small_pipeline(seed: int = 0) -> AudioXPipeline:
    """
    Create a pipeline to train: windows of 2 s of 8 kHz mono in 125 latent frames of 128 channels, 10 frames of video at
    5 a second, 128 letters of text and 2 s of audio prompt.

    Transformer and conditioner are to be trained. The VAE is set by hand, see [`create_mdct_vae`]. The text and image
    encoders have random weights: they tell captions and pictures apart, but know nothing of their meaning.

    Args:
        seed (`int`): Seed of the weights. The global random state is not changed.
    """
    return _create_pipeline(
        seed,
        transformer={
            "sample_size": NUM_FRAMES,
            "in_channels": HOP_LENGTH,
            "attention_head_dim": 64,
            "num_attention_heads": 4,
            "num_key_value_attention_heads": 2,
        },
        conditioner={
            "num_video_frames": NUM_VIDEO_FRAMES,
            "num_frame_tokens": 1 + (IMAGE_SIZE // PATCH_SIZE) ** 2,
            "num_video_tokens": 16,
            "video_fps": VIDEO_FPS,
            "latent_channels": HOP_LENGTH,
            "num_audio_latents": NUM_FRAMES,
            "audio_prompt_samples": NUM_FRAMES * HOP_LENGTH,
        },
        create_vae=create_mdct_vae,
        create_text_encoder=_create_distinct_text_encoder,
        image_encoder={"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        default_num_inference_steps=25,
        default_guidance_scale=1.0,
    )


def create_random_pipeline(seed: int = 0) -> AudioXPipeline:
    """
    Create a pipeline that generates noise of a moderate level: windows of 10.96 s of 44.1 kHz stereo, 50 frames of
    video at 5 a second, 128 tokens of text and 10 s of audio prompt, with two million random parameters.

    Args:
        seed (`int`): Seed of the weights. The global random state is not changed.
    """
    return _create_pipeline(
        seed,
        transformer={"num_attention_heads": 2, "num_key_value_attention_heads": 1},
        conditioner={},
        create_vae=_create_noise_vae,
        create_text_encoder=_create_text_encoder,
        image_encoder={},
    )


def _create_pipeline(
    seed: int,
    transformer: dict[str, Any],
    conditioner: dict[str, Any],
    create_vae: Callable[[], AudioXAutoencoderOobleck],
    create_text_encoder: Callable[[int], T5EncoderModel],
    image_encoder: dict[str, Any],
    **defaults: Any,
) -> AudioXPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = create_tokenizer()
        # The order of the components decides which random numbers each one gets.
        pipe = AudioXPipeline(
            transformer=AudioXTransformer2DModel(
                num_layers=2,
                cross_attention_input_dim=CONDITION_DIM,
                cross_attention_dim=CONDITION_DIM,
                time_proj_dim=64,
                **transformer,
            ),
            conditioner=AudioXConditioner(
                condition_dim=CONDITION_DIM, num_temporal_layers=1, num_temporal_heads=1, **conditioner
            ),
            vae=create_vae(),
            scheduler=AudioXDPMSolverSDEScheduler(),
            text_encoder=create_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            image_encoder=CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=CONDITION_DIM,
                    intermediate_size=2 * CONDITION_DIM,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    projection_dim=CONDITION_DIM,
                    **image_encoder,
                )
            ),
            **defaults,
        )
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipe


def create_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer with one token per letter, regardless of case."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *_LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


@torch.no_grad()
def create_mdct_vae() -> AudioXAutoencoderOobleck:
    """
    Create a VAE that needs no training, because it computes a modified discrete cosine transform with sine windows
    (Princen, Johnson and Bradley, 1987) and its inverse.

    A latent frame is the spectrum of 256 samples around 128 of its own. Each channel is divided by a standard deviation
    that falls with the frequency. Overlapping halves cancel each other's aliasing, so that decoding restores the sound
    except for the first and last 64 samples. The posterior's standard deviation is 1e-4.
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
            # Snake is x + sin^2(exp(alpha) x) / exp(beta). With so small an alpha the sine vanishes.
            parameter.fill_(-20.0)
        elif name.endswith("bias"):
            parameter.zero_()
        elif "res_unit" in name and "conv2" in name:
            parameter.fill_(_NEARLY_ZERO)

    basis = mdct_basis(HOP_LENGTH)
    frequency = (torch.arange(HOP_LENGTH) + 0.5) / HOP_LENGTH * SAMPLING_RATE / 2
    scale = _LEVEL / (1 + frequency / _KNEE)

    vae.encoder.conv1.weight.copy_(_pointwise(torch.ones(1, 1), 7))
    vae.encoder.block[0].conv1.weight.copy_(basis[:, None])
    zeros = torch.full((HOP_LENGTH, HOP_LENGTH), _NEARLY_ZERO)
    vae.encoder.conv2.weight.copy_(_pointwise(torch.cat((torch.diag(1 / scale), zeros)), 3))
    vae.encoder.conv2.bias[HOP_LENGTH:] = -20.0

    vae.decoder.conv1.weight.copy_(_pointwise(torch.diag(scale), 7))
    vae.decoder.block[0].conv_t1.weight.copy_(basis[:, None])
    vae.decoder.conv2.weight.copy_(_pointwise(torch.ones(1, 1), 7))
    return vae


def _pointwise(matrix: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Return weights `[out, in, kernel_size]` of a convolution that applies a matrix `[out, in]` to each sample."""
    weight = torch.zeros(*matrix.shape, kernel_size)
    weight[..., kernel_size // 2] = matrix
    return weight


@torch.no_grad()
def _create_noise_vae() -> AudioXAutoencoderOobleck:
    vae = AudioXAutoencoderOobleck(encoder_hidden_size=8, decoder_channels=8)
    # Random biases would add a constant offset louder than the noise.
    for name, parameter in vae.decoder.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    noise = vae.decode(torch.randn(1, vae.config.decoder_input_channels, 32)).sample
    vae.decoder.conv2.weight *= _NOISE_LEVEL / noise.std()
    return vae


def _create_text_encoder(vocab_size: int, d_kv: int = 32, num_heads: int = 2) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=vocab_size, d_model=CONDITION_DIM, d_kv=d_kv, d_ff=128, num_layers=2, num_heads=num_heads)
    )


@torch.no_grad()
def _create_distinct_text_encoder(vocab_size: int) -> T5EncoderModel:
    text_encoder = _create_text_encoder(vocab_size, d_kv=16, num_heads=4)
    # With weak random biases, every letter attends to all others alike, and captions of the same letters look the same.
    text_encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight *= 30
    return text_encoder
