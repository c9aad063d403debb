"""The model card of a converted checkpoint."""

from pathlib import Path

import torch
from huggingface_hub import ModelCardData

from ..loaders.original_checkpoint import DEFAULT_TEXT_ENCODER
from ..pipelines import AudioXPipeline

TAGS = ["audiox", "diffusers", "text-to-audio", "video-to-audio", "text-to-music", "audio-generation"]

CARD = """\
---
{metadata}
---

# AudioX for diffusers

AudioX ([arXiv 2503.10522](https://arxiv.org/abs/2503.10522)) makes sound and music from any mix of text, video, image
and audio. This is {source}, converted for
[diffusers](https://github.com/huggingface/diffusers) with `audiox convert` of the package `audiox-diffusers`, which it
needs.

## Usage

```python
import audiox_diffusers
import torch
from audiox_diffusers.media import save_audio
from diffusers import DiffusionPipeline

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = DiffusionPipeline.from_pretrained("{name}").to(device)
audio = pipe(prompt="waves on a pebble beach").audios[0]
save_audio("waves.wav", audio, pipe.vae.config.sampling_rate)
```

Without importing the package, though it must be installed:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", custom_pipeline="pipeline", trust_remote_code=True)
```

Or from the shell:

```bash
audiox generate --model {name} --prompt "waves on a pebble beach" --output waves.wav
```

One call makes up to {window:.4g} s of {channels}-channel sound at {rate} Hz.

## Components

| component | class | parameters | dtype |
|---|---|---|---|
{components}

## Licence and source

The weights are under CC BY-NC 4.0, the licence of the released AudioX: not for commercial use. They come from
{source}. The releases are at [HKUSTAudio](https://huggingface.co/HKUSTAudio).

The text encoder is `{text_encoder}`, under its own licence.
"""


def count_parameters(pipe: AudioXPipeline) -> dict[str, int]:
    """Parameters of each network, by component."""
    return {
        name: sum(parameter.numel() for parameter in component.parameters())
        for name, component in pipe.components.items()
        if isinstance(component, torch.nn.Module)
    }


def model_card(pipe: AudioXPipeline, source: str, text_encoder: str | None, name: str) -> str:
    """
    The text of `README.md`.

    Args:
        pipe: what was converted.
        source: the released checkpoint: a Hub id, or a path, of which only the last part is told.
        text_encoder: folder or Hub id of the text encoder, `None` for the default one.
        name: what to load it by, a Hub id or the name of a folder.
    """
    local = Path(source).exists()
    data = ModelCardData(
        license="cc-by-nc-4.0",
        base_model=None if local else source,
        library_name="diffusers",
        pipeline_tag="text-to-audio",
        tags=TAGS,
    )
    rows = []
    for component, parameters in count_parameters(pipe).items():
        model = getattr(pipe, component)
        dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
        rows.append(f"| {component} | `{type(model).__name__}` | {parameters:,} | {', '.join(dtypes)} |")
    rate = pipe.vae.config.sampling_rate
    link = f"[{source}](https://huggingface.co/{source})"
    return CARD.format(
        metadata=data.to_yaml(),
        source=f"the released checkpoint `{_public_name(source)}`" if local else link,
        name=name,
        window=pipe.window_samples / rate,
        channels=pipe.vae.config.audio_channels,
        rate=rate,
        components="\n".join(rows),
        text_encoder=_public_name(text_encoder or DEFAULT_TEXT_ENCODER),
    )


def _public_name(source: str) -> str:
    """A Hub id as it is, of a path the last part."""
    return Path(source).resolve().name if Path(source).exists() else source
