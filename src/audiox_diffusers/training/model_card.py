"""The model card of a trained pipeline."""

import argparse
import math
from typing import Any

from huggingface_hub import ModelCardData

from ..loaders import on_hub, public_name
from ..pipelines import AudioXPipeline
from .arguments import MASKING_RATES

TAGS = ["audiox", "diffusers", "text-to-audio", "video-to-audio", "text-to-music", "audio-generation"]

CARD = """\
---
{metadata}
---

# {title}

[AudioX](https://arxiv.org/abs/2503.10522) {origin}, trained with `training/train_audiox.py` of the package
`audiox-diffusers`, which it needs. It makes up to {window:.4g} s of {channels}-channel sound at {rate} Hz.

## Usage

```python
import audiox_diffusers
from audiox_diffusers.media import save_audio
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}")
audio = pipe(prompt="waves on a pebble beach").audios[0]
save_audio("sound.wav", audio, pipe.vae.config.sampling_rate)
```

{training}

## Licence

It follows from those of the model that the training started from, and of the data.
"""

TRAINING = """\
## Training

{settings}

| step | loss |
|---|---|
{losses}

Each loss is the mean of the steps since the row above."""

# Most rows of the table of losses.
ROWS = 10


def model_name(args: argparse.Namespace) -> str:
    """What the model is called on the Hub."""
    return args.hub_model_id or args.output_dir.resolve().name


def training_card(args: argparse.Namespace, pipe: AudioXPipeline, log: list[dict[str, Any]]) -> str:
    """
    The text of `README.md`.

    Args:
        args: of the run.
        pipe: what was trained.
        log: the report of each step, in order.
    """
    base = args.pretrained_model_name_or_path
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-audio",
        tags=TAGS,
        base_model=base if on_hub(base) and not args.from_scratch else None,
        datasets=[name for name in args.dataset if on_hub(name)] or None,
    )
    return CARD.format(
        metadata=data.to_yaml(),
        title=args.output_dir.resolve().name,
        name=model_name(args),
        origin=("from scratch, with the encoders of" if args.from_scratch else "from") + f" `{public_name(base)}`",
        window=pipe.window_samples / pipe.vae.config.sampling_rate,
        channels=pipe.vae.config.audio_channels,
        rate=pipe.vae.config.sampling_rate,
        training=training_section(settings(args, log), log),
    )


def training_section(settings: dict[str, Any], log: list[dict[str, Any]]) -> str:
    """The settings of a run, and its losses."""
    return TRAINING.format(
        settings="\n".join(f"- {name}: {value}" for name, value in settings.items()),
        losses="\n".join(f"| {step} | {loss:.4f} |" for step, loss in _mean_losses(log)),
    )


def settings(args: argparse.Namespace, log: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run was told, as far as all ways of training share it, and how long it was."""
    names = [public_name(name) for name in args.dataset]
    weights = args.dataset_weights or [1.0] * len(names)
    rates = {name.replace("_", " "): getattr(args, name) for name in MASKING_RATES}
    return {
        "data": ", ".join(f"`{name}` ({weight:g})" for name, weight in zip(names, weights, strict=True)),
        "steps": _steps(log) if log else args.max_train_steps,
        "batch": f"{args.train_batch_size} for each device, {args.gradient_accumulation_steps} accumulated",
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler}",
        "averaged weights": f"decay {args.ema_decay:g}" if args.use_ema else "no",
        "task weights": ", ".join(args.task_weights) or "all the same",
        "masking": ", ".join(f"{name} {rate:g}" for name, rate in rates.items()),
        "seed": args.seed,
    }


def _steps(log: list[dict[str, Any]]) -> str:
    """How many, and after which of them the weights were kept: early stopping ends a run later than that."""
    measured = [(report["held_out_loss"], report["step"]) for report in log if "held_out_loss" in report]
    kept = f"; the weights are those after {min(measured)[1]}, the best on clips held out" if measured else ""
    return f"{log[-1]['step']}{kept}"


def _mean_losses(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """The last step and the mean loss of each of at most `ROWS` stretches, equal but for the last."""
    size = max(1, math.ceil(len(log) / ROWS))
    stretches = [log[first : first + size] for first in range(0, len(log), size)]
    return [(stretch[-1]["step"], sum(report["loss"] for report in stretch) / len(stretch)) for stretch in stretches]
