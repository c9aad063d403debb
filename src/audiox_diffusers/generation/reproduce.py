"""Ways to generate a sound again from its recipe: as a command line, as Python and as a request. Nothing is executed."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from ..media.formats import VIDEO_FORMATS
from ..media.recipe import Recipe
from ..option_types import guider_arguments

# Fields of a recipe that are options of `audiox generate` and `audiox edit`.
VALUES = (
    *("prompt", "negative_prompt", "video", "image", "audio", "negative_video", "negative_audio", "length"),
    *("extend", "strength", "crossfade", "steps", "guidance", "guidance_rescale", "guider"),
    *("audio_padding", "window_overlap", "window_batch", "seed", "dtype"),
)
# Values that the command line and the pipelines have anyway.
DEFAULTS = {"guidance_rescale": 0, "window_batch": 4, "audio_padding": "right"}


def quote(text: str) -> str:
    """Quote a text for a shell. Characters that a terminal would obey are escaped, as `$'\\x1b'`."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_escaped(char) for char in text) + "'"


def _escaped(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    return char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in char.encode())


def command_line(recipe: Recipe, output: str) -> str | None:
    """Return the command that generates a sound, `None` if it has LoRA adapters, for which there is no option."""
    if recipe.lora:
        return None
    words = ["audiox", "edit" if recipe.is_edit else "generate", *_option("model", recipe.model)]
    for name in VALUES:
        value = getattr(recipe, name)
        if value is not None and value != DEFAULTS.get(name):
            words += _option(name, _number(value) if isinstance(value, float) else str(value))
    for name, value in (("guidance", _weights(recipe)), ("guidance_interval", _interval(recipe))):
        if value is not None:
            words += _option(name, value)
    for start, end in recipe.inpaint:
        words += _option("inpaint", f"{_number(start)}-{_number(end)}")
    if recipe.normalize:
        words.append("--normalize")
    return " ".join([*words, *_option("output", output)])


def _weights(recipe: Recipe) -> str | None:
    return ",".join(f"{name}={_number(weight)}" for name, weight in recipe.guidance_weights) or None


def _interval(recipe: Recipe) -> str | None:
    return ",".join(f"{_number(low)}-{_number(high)}" for low, high in recipe.guidance_interval) or None


def _option(name: str, value: str) -> list[str]:
    """Return an option and its value, quoted. A value that looks like an option is joined to its name."""
    option = f"--{name.replace('_', '-')}"
    return [f"{option}={quote(value)}"] if value.startswith("-") else [option, quote(value)]


def _number(value: float) -> str:
    """Return a number without an exponent, which spans cannot have."""
    text = repr(float(value)).removesuffix(".0")
    return text if "e" not in text else f"{value:.9f}"


def python_code(recipe: Recipe, output: str) -> str:
    """Return a Python program that generates a sound. Every text is a literal."""
    return "\n".join(_python_lines(recipe, output)) + "\n"


def _python_lines(recipe: Recipe, output: str) -> Iterator[str]:
    pipeline = "AudioXInpaintPipeline" if recipe.is_edit else "AudioXPipeline"
    keeps_picture = recipe.video is not None and Path(output).suffix.lower() in VIDEO_FORMATS
    writer = "save_video" if keeps_picture else "save_audio"
    yield "import torch"
    guider, options = (None, {}) if recipe.guider is None else guider_arguments(recipe.guider)
    if guider is not None:
        yield f"from diffusers import {guider}"
    yield f"from audiox_diffusers import {pipeline}"
    yield f"from audiox_diffusers.media import {writer}"
    yield ""
    dtype = f"torch.{recipe.dtype or 'float32'}"
    if recipe.dtype == "mixed":
        dtype = '{"transformer": torch.bfloat16, "default": torch.float32}'
    yield f"pipe = {pipeline}.from_pretrained({recipe.model!r}, dtype={dtype})"
    if recipe.dtype in ("bfloat16", "float16"):
        yield 'pipe.to("cuda")'
    names = [f"lora_{number}" for number in range(len(recipe.lora))]
    for (adapter, _), name in zip(recipe.lora, names, strict=True):
        yield f"pipe.load_lora_weights({adapter!r}, adapter_name={name!r})"
    if names:
        yield f"pipe.set_adapters({names!r}, {[scale for _, scale in recipe.lora]!r})"
    arguments = {
        "prompt": recipe.prompt,
        "negative_prompt": recipe.negative_prompt,
        **recipe.inputs,
        "audio_length_in_s": recipe.length,
        "inpaint_spans": list(recipe.inpaint) or None,
        "extend_by_s": recipe.extend,
        "strength": recipe.strength,
        "crossfade_ms": recipe.crossfade,
        "num_inference_steps": recipe.steps,
        "guidance_scale": (dict(recipe.guidance_weights) or recipe.guidance) if guider is None else None,
        "guidance_rescale": recipe.guidance_rescale or None,
        "guidance_interval": recipe.guidance_interval[0] if recipe.guidance_interval else None,
        "audio_padding_side": recipe.audio_padding,
        "window_overlap_in_s": recipe.window_overlap,
    }
    if recipe.window_batch != DEFAULTS["window_batch"]:
        arguments["window_batch_size"] = recipe.window_batch
    if guider is not None:
        yield f"guider = {guider}("
        for name, value in {"guidance_scale": recipe.guidance, **options}.items():
            if value is not None:
                yield f"    {name}={value!r},"
        yield ")"
    yield "waveform = pipe("
    for name, value in arguments.items():
        if value is not None:
            yield f"    {name}={value!r},"
    if guider is not None:
        yield "    guider=guider,"
    yield f"    generator=torch.Generator().manual_seed({recipe.seed}),"
    yield ").audios[0]"
    if recipe.normalize:
        yield "waveform = waveform / abs(waveform).max()"
    picture = f"{recipe.video!r}, " if keeps_picture else ""
    yield f"{writer}({output!r}, {picture}waveform, pipe.vae.config.sampling_rate)"


def curl_line(recipe: Recipe, url: str, output: str) -> str:
    """Return the request to a server of `audiox serve` that generates a sound."""
    words = ["curl", "--fail-with-body", quote(f"{url.rstrip('/')}/v1/audio/generate")]
    values = {
        "input": recipe.prompt,
        "negative_prompt": recipe.negative_prompt,
        "model": recipe.model,
        "audio_length": recipe.length,
        "inpaint_spans": ",".join(f"{_number(start)}-{_number(end)}" for start, end in recipe.inpaint) or None,
        "extend_by": recipe.extend,
        "strength": recipe.strength,
        "num_inference_steps": recipe.steps,
        "guidance_scale": _weights(recipe) or recipe.guidance,
        "guidance_rescale": recipe.guidance_rescale or None,
        "guidance_interval": _interval(recipe),
        "guider": recipe.guider,
        "seed": recipe.seed,
        "normalize": "true" if recipe.normalize else None,
        "lora": json.dumps(dict(recipe.lora)) if recipe.lora else None,
        "response_format": Path(output).suffix[1:],
    }
    for name, value in values.items():
        if value is not None:
            text = _number(value) if isinstance(value, float) else str(value)
            words += ["--form-string", quote(f"{name}={text}")]
    for name, file in recipe.inputs.items():
        escaped = file.replace("\\", "\\\\").replace('"', '\\"')
        words += ["--form", quote(f'{name}=@"{escaped}"')]
    return " ".join([*words, "--output", quote(output)])
