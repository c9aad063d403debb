"""An AudioX of the real shapes with small random networks: for tests and benchmarks. It makes noise."""

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from .models import AudioXAutoencoderOobleck, AudioXConditioner, AudioXTransformer2DModel
from .pipelines import AudioXPipeline
from .schedulers import AudioXDPMSolverSDEScheduler

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:!?'-"
# Standard deviation of the decoded noise; its peaks, some ten times as high, stay within -1..1.
_LEVEL = 0.07


def create_random_pipeline(seed: int = 0) -> AudioXPipeline:
    """
    A whole pipeline with random weights, which needs no files: windows of 10.96 s of 44.1 kHz stereo, 50 frames of
    video at 5 a second, 128 tokens of text and 10 s of audio prompt, as released, in networks of two million
    parameters together. What it makes is noise, of a moderate level.

    Args:
        seed: of the weights. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = create_tokenizer()
        pipe = AudioXPipeline(
            transformer=AudioXTransformer2DModel(
                num_layers=2,
                num_attention_heads=2,
                num_key_value_attention_heads=1,
                cross_attention_input_dim=64,
                cross_attention_dim=64,
                time_proj_dim=64,
            ),
            conditioner=AudioXConditioner(condition_dim=64, num_temporal_layers=1, num_temporal_heads=1),
            vae=_create_vae(),
            scheduler=AudioXDPMSolverSDEScheduler(),
            text_encoder=T5EncoderModel(
                T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
            ),
            tokenizer=tokenizer,
            image_encoder=CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=64,
                    intermediate_size=128,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    projection_dim=64,
                )
            ),
        )
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipe


@torch.no_grad()
def _create_vae() -> AudioXAutoencoderOobleck:
    vae = AudioXAutoencoderOobleck(encoder_hidden_size=8, decoder_channels=8)
    # Random biases would make a constant offset that is louder than all else.
    for name, parameter in vae.decoder.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    noise = vae.decode(torch.randn(1, vae.config.decoder_input_channels, 32)).sample
    vae.decoder.conv2.weight *= _LEVEL / noise.std()
    return vae


def create_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each letter, small and capital alike."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *_LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )
