"""The model card of an adapter, and the sounds in it."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from huggingface_hub import ModelCardData

from ...loaders import on_hub, public_name
from ...media import save_audio
from ...pipelines import AudioXPipeline
from ...pipelines.prompt_files import read_prompt_file
from ..model_card import TAGS, model_name, settings, training_section

logger = logging.get_logger(__name__)

# Sounds in a card.
SOUNDS = 2

CARD = """\
---
{metadata}
---

# {title}

A LoRA adapter of rank {rank} for [AudioX](https://arxiv.org/abs/2503.10522) as in `{base}`, trained with
`training/train_audiox_lora.py` of the package `audiox-diffusers`, which it needs.
{trigger}
## Usage

```python
from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import save_audio

pipe = AudioXPipeline.from_pretrained("{base_path}")
pipe.load_lora_weights("{name}")
audio = pipe(prompt="{prompt}").audios[0]
save_audio("sound.wav", audio, pipe.vae.config.sampling_rate)
```
{samples}
{training}

## Licence

Of the data: {data_license}. That of the adapter follows from it and from the licence of the base model.
"""


def make_samples(args: argparse.Namespace, pipe: AudioXPipeline, folder: Path) -> list[tuple[str, str]]:
    """
    Make sounds with the adapter: those of the first lines of `--validation_prompts`, otherwise of the trigger words.

    Args:
        args: of the run.
        pipe: with the adapter.
        folder: where to.

    Returns:
        File name and caption of each; none where there is nothing to make them for. One that fails is warned of, and
        is the last: the adapter is still to be written.
    """
    folder.mkdir()
    made = []
    try:
        for number, request in enumerate(_requests(args)[:SOUNDS]):
            seed, length = request.pop("seed", number), request.pop("length", None)
            sound = pipe(
                **request,
                audio_length_in_s=length,
                generator=[torch.Generator().manual_seed(seed)],
                num_inference_steps=args.validation_inference_steps,
                guidance_scale=args.validation_guidance_scale,
            ).audios[0]
            name = f"{number:03}.wav"
            save_audio(folder / name, np.clip(sound, -1, 1), pipe.vae.config.sampling_rate)
            made.append((name, request.get("prompt", "")))
    except (ValueError, OSError) as error:
        logger.warning(f"sounds of the model card: {error}")
    return made


def _requests(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What sounds are made for."""
    if args.validation_prompts is not None:
        return list(read_prompt_file(args.validation_prompts).values())
    return [{"prompt": word} for word in args.trigger_words or []]


def lora_card(
    args: argparse.Namespace,
    pipe: AudioXPipeline,
    config: dict[str, Any],
    samples: list[tuple[str, str]],
    log: list[dict[str, Any]],
) -> str:
    """
    The text of `README.md`.

    Args:
        args: of the run.
        pipe: with the adapter.
        config: of peft.
        samples: see [`make_samples`].
        log: the report of each step, in order.
    """
    base, words = args.pretrained_model_name_or_path, args.trigger_words or []
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-audio",
        tags=[*TAGS, "lora"],
        base_model=base if on_hub(base) else None,
        base_model_relation="adapter" if on_hub(base) else None,
        instance_prompt=", ".join(words) or None,
        datasets=[name for name in args.dataset if on_hub(name)] or None,
    )
    trigger = f"\nTrigger words: {', '.join(f'`{word}`' for word in words)}.\n" if words else ""
    prompt = next((caption for _, caption in samples if caption), (words or ["waves on a pebble beach"])[0])
    return CARD.format(
        metadata=data.to_yaml(),
        title=args.output_dir.resolve().name,
        name=model_name(args),
        base=public_name(base),
        base_path=public_name(base),
        rank=config["r"],
        trigger=trigger,
        prompt=prompt.replace("\\", "\\\\").replace('"', '\\"'),
        samples=_samples_section(samples),
        training=training_section(_settings(args, config, log), log),
        data_license=args.data_license or "not stated",
    )


def _samples_section(samples: list[tuple[str, str]]) -> str:
    rows = "".join(
        f'\n{caption or "without a caption"}:\n\n<audio controls src="samples/{name}"></audio>\n'
        for name, caption in samples
    )
    return f"\n## Samples\n{rows}" if rows else ""


def _settings(args: argparse.Namespace, config: dict[str, Any], log: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = {"DoRA": config["use_dora"], "rsLoRA": config["use_rslora"]}
    prior = f"weight {args.prior_loss_weight:g}, {args.num_class_sounds} sounds"
    return {
        "rank": config["r"],
        "alpha": f"{config['lora_alpha']:g}",
        "kind": ", ".join(name for name, used in kinds.items() if used) or "LoRA",
        "modules": ", ".join(f"`{name}`" for name in sorted(config["target_modules"])),
        "dropout": f"{args.lora_dropout:g}",
        "initialisation": args.init_lora_weights,
        "base in": args.quantization or "whole weights",
        "projections of the conditioner": "trained" if args.train_conditioner else "not trained",
        "prior preservation": prior if args.with_prior_preservation else "no",
        **settings(args, log),
    }
