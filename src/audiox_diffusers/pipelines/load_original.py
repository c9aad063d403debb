"""A released AudioX checkpoint as a pipeline."""

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, PreTrainedTokenizerBase, T5EncoderModel

from ..loaders import load_components
from ..models import SynchformerVisionModel
from ..schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from .pipeline_audiox import AudioXPipeline


def load_original_checkpoint(
    checkpoint: str | Path,
    config: str | Path | dict | None = None,
    text_encoder: T5EncoderModel | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    image_encoder_config: CLIPVisionConfig | dict | str | Path | None = None,
    vae: str | Path | None = None,
    synchformer: SynchformerVisionModel | str | Path | None = None,
    dtype: torch.dtype | None = None,
    **hub_kwargs,
) -> AudioXPipeline:
    r"""
    Turn a released AudioX checkpoint into an [`AudioXPipeline`].

    Args:
        checkpoint (`str` or `Path`): a `.ckpt` or `.safetensors` file, a folder that holds `model.safetensors` or
            `model.ckpt` and `config.json`, or a Hub id such as `"HKUSTAudio/AudioX"`.
        config (`str`, `Path` or `dict`, *optional*): the released `config.json`; by default the one beside the
            checkpoint.
        text_encoder (`T5EncoderModel`, `str` or `Path`, *optional*): T5, which the checkpoint does not hold. A model,
            a folder or a Hub id; `google-t5/t5-base` by default.
        tokenizer (*optional*): a tokenizer, a folder or a Hub id; by default the one of the text encoder. It is
            copied and set to pad to the length that the checkpoint expects.
        image_encoder_config (*optional*): config of CLIP's vision tower; ViT-B/32's by default. Its weights are in
            the checkpoint.
        vae (`str` or `Path`, *optional*): the VAE's file, for the releases that keep it in one of its own; `vae.ckpt`
            beside the checkpoint by default.
        synchformer ([`SynchformerVisionModel`], `str` or `Path`, *optional*): Synchformer, for the releases that
            follow a video's timing. A model, or its file; `synchformer_state_dict.pth` beside the checkpoint by
            default.
        dtype (`torch.dtype`, *optional*): what to cast the weights to; by default they stay as the file has them,
            memory-mapped from it. The VAE's decoder stays in float32.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only` for a Hub id.

    Returns:
        The [`AudioXPipeline`].

    Raises:
        FileNotFoundError: if the checkpoint or the config is not there.
        ValueError: if the file is no AudioX checkpoint, holds code, or contradicts the config.
    """
    components, objective = load_components(
        checkpoint,
        config,
        text_encoder,
        tokenizer,
        image_encoder_config,
        vae,
        synchformer,
        dtype,
        **hub_kwargs,
    )
    if objective == "v":
        return AudioXPipeline(scheduler=AudioXDPMSolverSDEScheduler(), **components)
    return AudioXPipeline(
        scheduler=AudioXFlowMatchScheduler(stochastic_sampling=True),
        default_num_inference_steps=4,
        default_guidance_scale=1.0,
        **components,
    )
