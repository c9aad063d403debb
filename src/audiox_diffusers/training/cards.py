"""Model cards of trained pipelines and adapters."""

import math
from dataclasses import fields
from textwrap import indent
from typing import Any

from huggingface_hub import ModelCardData

from ..card_text import TAGS, code, plain, string
from ..loaders import on_hub, public_name
from ..messages import one_line
from ..pipelines import AudioXPipeline
from .arguments import MaskingRates, TrainingArguments, as_json
from .config_file import public_config
from .validation_metrics import read_last_metrics

CARD = "README.md"
EXAMPLE_PROMPT = "waves on a pebble beach"
# Name of the held-out loss in reports.
HELD_OUT = "held_out_loss"
# Most rows in the table of losses.
ROWS = 10

TEMPLATE = """\
---
{metadata}
---

# {title}

{introduction}

## Usage

```python
{usage}
save_audio("sound.wav", audio, pipe.vae.config.sampling_rate)
```
{samples}
## Training

{settings}

| step | loss |
|---|---|
{losses}

Each row gives the mean loss since the row above.

The options that differ from their defaults, as a file for `--config`:

{config}

## Licence

{licence}
"""

PIPELINE_USAGE = """\
import audiox_diffusers
from audiox_diffusers.media import save_audio
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({name})
audio = pipe(prompt={prompt}).audios[0]"""

LORA_USAGE = """\
from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import save_audio

pipe = AudioXPipeline.from_pretrained({base})
pipe.load_lora_weights({name})
audio = pipe(prompt={prompt}).audios[0]"""

STUDENT_LORA_USAGE = """\
from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import save_audio

pipe = AudioXPipeline.from_pretrained({base})
pipe.load_lora_weights({name})
pipe.scheduler = type(pipe.scheduler).from_pretrained({name}, subfolder="scheduler")
audio = pipe(prompt={prompt}, num_inference_steps={steps}, guidance_scale=1.0).audios[0]"""


def model_name(args: TrainingArguments) -> str:
    """Return the model's name on the Hub."""
    return args.hub_model_id or args.output_dir.resolve().name


def training_card(args: TrainingArguments, pipe: AudioXPipeline, log: list[dict[str, Any]]) -> str:
    """
    Write the card of a trained pipeline.

    Args:
        args: Options of the run.
        pipe: The trained pipeline.
        log: Report of each step, in order.
    """
    base = args.pretrained_model_name_or_path
    origin = "trained from scratch, with the encoders of" if args.from_scratch else "trained from"
    seconds = pipe.window_samples / pipe.vae.config.sampling_rate
    return _fill(
        args,
        {"base_model": public_name(base) if on_hub(base) and not args.from_scratch else None, "tags": TAGS},
        log,
        introduction=f"[AudioX](https://arxiv.org/abs/2503.10522), {origin} {code(public_name(base))} with"
        " `training/train_audiox.py` of the package `audiox-diffusers`, which it needs.\n\n"
        f"A call generates up to {seconds:.4g} s of {pipe.vae.config.audio_channels}-channel audio"
        f" at {pipe.vae.config.sampling_rate} Hz.",
        usage=PIPELINE_USAGE.format(name=string(model_name(args)), prompt=string(EXAMPLE_PROMPT)),
        samples="",
        settings=_settings(args, log),
        licence="The licences of the base model and of the data apply.",
    )


def lora_card(
    args: TrainingArguments, config: dict[str, Any], samples: list[tuple[str, str]], log: list[dict[str, Any]]
) -> str:
    """
    Write the card of an adapter.

    Args:
        args: Options of the run, a [`LoraArguments`].
        config: peft's configuration of the adapter.
        samples: File name and caption of each sample.
        log: Report of each step, in order.
    """
    base, words = args.pretrained_model_name_or_path, args.trigger_words or []
    trigger = f"\n\nTrigger words: {', '.join(map(code, words))}." if words else ""
    players = "".join(
        f'\n{plain(caption) or "No caption"}:\n\n<audio controls src="samples/{name}"></audio>\n'
        for name, caption in samples
    )
    prompt = next((caption for _, caption in samples if caption), (words or [EXAMPLE_PROMPT])[0])
    return _fill(
        args,
        {
            "base_model": public_name(base) if on_hub(base) else None,
            "base_model_relation": "adapter" if on_hub(base) else None,
            "instance_prompt": one_line(", ".join(words)) or None,
            "tags": [*TAGS, "lora"],
        },
        log,
        introduction=f"A LoRA adapter of rank {config['r']} for [AudioX](https://arxiv.org/abs/2503.10522), trained on"
        f" {code(public_name(base))} with `training/train_audiox_lora.py` of the package"
        f" `audiox-diffusers`, which it needs.{trigger}",
        usage=LORA_USAGE.format(base=string(public_name(base)), name=string(model_name(args)), prompt=string(prompt)),
        samples=f"\n## Samples\n{players}" if players else "",
        settings={**_lora_settings(args, config), **_settings(args, log)},
        licence=f"Data: {plain(args.data_license or 'not stated')}. The licence of the base model applies too.",
    )


def student_card(args: TrainingArguments, facts: dict[str, str], log: list[dict[str, Any]]) -> str:
    """
    Write the card of a distilled pipeline or adapter.

    Args:
        args: Options of the run, a [`DistillArguments`].
        facts: Further settings.
        log: Report of each step, in order.
    """
    base, adapter = args.pretrained_model_name_or_path, args.student == "adapter"
    usage = STUDENT_LORA_USAGE if adapter else PIPELINE_USAGE
    settings = {"method": args.method, "student": args.student, **facts}
    if adapter:
        settings["rank"] = args.rank
    if args.method == "dmd":
        settings["fake score"] = f"{args.fake_updates} updates for each of the student"
        settings["ODE regression"] = f"{args.ode_steps} steps, {args.ode_pairs} paths of {args.teacher_steps} steps"
    return _fill(
        args,
        {
            "base_model": public_name(base) if on_hub(base) else None,
            "base_model_relation": ("adapter" if adapter else "finetune") if on_hub(base) else None,
            "tags": [*TAGS, "distillation", *(["lora"] if adapter else [])],
        },
        log,
        introduction=f"{code(public_name(base))}, distilled to {args.num_student_steps} steps without guidance with"
        " `training/distill_audiox.py` of the package `audiox-diffusers`, which it needs. The guidance scale of the"
        " teacher and the times of the steps are part of the model.",
        usage=usage.format(
            base=string(public_name(base)),
            name=string(model_name(args)),
            prompt=string(EXAMPLE_PROMPT),
            steps=args.num_student_steps,
        ),
        samples="",
        settings={**settings, **_settings(args, log)},
        licence="The licences of the base model and of the data apply.",
    )


def _fill(
    args: TrainingArguments,
    metadata: dict[str, Any],
    log: list[dict[str, Any]],
    settings: dict[str, Any],
    **texts: str,
) -> str:
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-audio",
        datasets=[name for name in args.dataset if on_hub(name)] or None,
        **metadata,
    )
    return TEMPLATE.format(
        metadata=data.to_yaml(),
        title=plain(args.output_dir.resolve().name),
        settings="\n".join(f"- {name}: {value}" for name, value in settings.items()),
        losses="\n".join(f"| {step} | {loss:.4f} |" for step, loss in _mean_losses(log)),
        config=indent(public_config(as_json(args), _defaults(args)), "    ").rstrip(),
        **texts,
    )


def _defaults(args: TrainingArguments) -> dict[str, Any]:
    return {field.name: field.default for field in fields(args)}


def _settings(args: TrainingArguments, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that all training methods share."""
    names = [code(public_name(name)) for name in args.dataset]
    weights = args.dataset_weights or [1.0] * len(names)
    measured = read_last_metrics(args.output_dir)
    rates = {rate.name.replace("_", " "): getattr(args, rate.name) for rate in fields(MaskingRates)}
    return {
        "data": ", ".join(f"{name} ({weight:g})" for name, weight in zip(names, weights, strict=True)),
        "steps": _steps(log) if log else args.max_train_steps,
        "batch size": f"{args.train_batch_size} per device, {args.gradient_accumulation_steps} accumulated",
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler}",
        "averaged weights": _averaging(args),
        "task weights": plain(", ".join(args.task_weights)) or "equal",
        "masking": ", ".join(f"{name} {rate:g}" for name, rate in rates.items()),
        "seed": args.seed,
        **_held_out(log),
        **({} if measured is None else {f"validation at step {measured[0]}": _figures(measured[1])}),
    }


def _averaging(args: TrainingArguments) -> str:
    if args.ema_sigma_rel is not None:
        return f"power function of relative length {args.ema_sigma_rel:g}"
    return f"decay {args.ema_decay:g}" if args.use_ema else "no"


def _figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _lora_settings(args: TrainingArguments, config: dict[str, Any]) -> dict[str, Any]:
    kinds = {"DoRA": config["use_dora"], "rsLoRA": config["use_rslora"]}
    prior = f"weight {args.prior_loss_weight:g}, {args.num_class_sounds} files"
    return {
        "rank": config["r"],
        "alpha": f"{config['lora_alpha']:g}",
        "kind": ", ".join(name for name, used in kinds.items() if used) or "LoRA",
        "modules": ", ".join(map(code, sorted(config["target_modules"]))),
        "blocks": ", ".join(map(str, config.get("layers_to_transform") or ["all"])),
        "start": "new layers" if args.init_adapter is None else code(public_name(args.init_adapter)),
        "dropout": f"{args.lora_dropout:g}",
        "initialization": args.init_lora_weights,
        "quantization of the base": args.quantization or "none",
        "conditioner projections": "trained" if args.train_conditioner else "frozen",
        "prior preservation": prior if args.with_prior_preservation else "no",
    }


def _best(log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the report with the lowest held-out loss, whose weights are kept. `None` without held-out clips."""
    measured = [report for report in log if HELD_OUT in report]
    return min(measured, key=lambda report: report[HELD_OUT], default=None)


def _steps(log: list[dict[str, Any]]) -> str:
    """Return the number of steps. Early stopping keeps the weights of an earlier step."""
    best = _best(log)
    kept = "" if best is None else f"; weights of step {best['step']}, the best on held-out clips"
    return f"{log[-1]['step']}{kept}"


def _held_out(log: list[dict[str, Any]]) -> dict[str, str]:
    """Return the held-out losses of the kept weights."""
    best = _best(log)
    if best is None:
        return {}
    parts = {name.removeprefix(f"{HELD_OUT}/"): loss for name, loss in best.items() if name.startswith(f"{HELD_OUT}/")}
    return {
        "held-out loss": f"{best[HELD_OUT]:.4f}",
        "held-out loss by timestep, from clean (0) to noise (1)": _figures(parts),
    }


def _mean_losses(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return last step and mean loss of at most `ROWS` parts of the run, of equal length except for the last."""
    # Training skips steps whose loss is not finite.
    log = [report for report in log if math.isfinite(report["loss"])]
    size = max(1, math.ceil(len(log) / ROWS))
    parts = [log[first : first + size] for first in range(0, len(log), size)]
    return [(part[-1]["step"], sum(report["loss"] for report in part) / len(part)) for part in parts]
