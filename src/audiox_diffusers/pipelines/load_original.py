"""Load a released AudioX checkpoint as a pipeline."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, PreTrainedTokenizerBase, T5EncoderModel

from ..loaders.original_checkpoint import OtherParts, load_components
from ..loaders.original_files import find_files
from ..models import SynchformerVisionModel
from ..schedulers import AudioXDPMSolverSDEScheduler, AudioXFlowMatchScheduler
from .pipeline_audiox import AudioXPipeline

# (steps, guidance) of the rectified-flow releases.
_STUDENT = (4, 1.0)
_TEACHER = (100, 6.0)


def load_original_checkpoint(
    checkpoint: str | Path,
    config: str | Path | dict | None = None,
    text_encoder: T5EncoderModel | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    image_encoder_config: CLIPVisionConfig | dict | str | Path | None = None,
    vae: str | Path | None = None,
    synchformer: SynchformerVisionModel | str | Path | None = None,
    dtype: torch.dtype | dict[str, torch.dtype] | None = None,
    variant: str | None = None,
    **hub_kwargs: Any,
) -> AudioXPipeline:
    r"""
    Load a released AudioX checkpoint as an [`AudioXPipeline`].

    Args:
        checkpoint (`str` or `Path`): One of:

            - A `.ckpt` or `.safetensors` file.
            - A folder with `model.ckpt` or `model.safetensors` and `config.json`.
            - A folder with `audiox_turbo/audiox_turbo.ckpt` or `pretrained_ckpt/pretrained_ckpt.ckpt`, which the
              download script of AudioX-Turbo makes.
            - The name of a release such as `"audiox-turbo"`, or a Hub id such as `"HKUSTAudio/AudioX"`.
        config (`str`, `Path` or `dict`, *optional*): The released config: a file, a dict, or the name of a release,
            whose published config is then used. Defaults to the config that belongs to the checkpoint.
        text_encoder (`T5EncoderModel`, `str` or `Path`, *optional*): T5, which is not in the checkpoint: a model, a
            folder or a Hub id. Defaults to `google-t5/t5-base`.
        tokenizer (*optional*): A tokenizer, a folder or a Hub id. Defaults to the tokenizer of the text encoder. It
            is copied and set to pad to the length that the checkpoint needs.
        image_encoder_config (*optional*): Config of CLIP's vision tower, whose weights are in the checkpoint.
            Defaults to the sizes of the weights, with heads 64 wide, which is ViT-B/32 for the releases.
        vae (`str` or `Path`, *optional*): File of the VAE. Defaults to the VAE in the checkpoint, or `vae.ckpt`
            beside it.
        synchformer ([`SynchformerVisionModel`], `str` or `Path`, *optional*): Synchformer for the releases that need
            it, as a model or a file. Defaults to `synchformer_state_dict.pth` beside the checkpoint.
        dtype (`torch.dtype` or `dict[str, torch.dtype]`, *optional*): Type to cast the weights to, or one for some
            components and for `"default"`, as in `from_pretrained`. By default they keep the stored type and stay
            memory-mapped. The VAE's decoder is always float32.
        variant (`str`, *optional*): `"student"` or `"teacher"`, for AudioX-Turbo. The student takes four steps without
            guidance. The teacher, which it was distilled from, takes many, with a guidance of 6.
        hub_kwargs: `revision`, `token`, `cache_dir` and `local_files_only` for downloads.

    Returns:
        The [`AudioXPipeline`].

    Raises:
        FileNotFoundError: The checkpoint, its config or another file is missing.
        ValueError: The file is not an AudioX checkpoint, contains code, or contradicts the config.
    """
    files = find_files(checkpoint, config, variant, **hub_kwargs)
    hub_kwargs.pop("revision", None)
    others = OtherParts(text_encoder, tokenizer, image_encoder_config, vae, synchformer)
    components, objective = load_components(files, others, dtype, **hub_kwargs)
    if objective == "v":
        if variant is not None:
            raise ValueError(f"`variant`: only AudioX-Turbo has a {variant}; this checkpoint has the objective 'v'.")
        return AudioXPipeline(scheduler=AudioXDPMSolverSDEScheduler(), **components)
    steps, guidance = _TEACHER if files.teacher else _STUDENT
    return AudioXPipeline(
        scheduler=AudioXFlowMatchScheduler(stochastic_sampling=not files.teacher),
        default_num_inference_steps=steps,
        default_guidance_scale=guidance,
        **components,
    )
