"""The model card of a converted checkpoint."""

import shlex

import torch
from huggingface_hub import ModelCardData

from ..card_text import TAGS, code, string
from ..loaders import on_hub, public_name
from ..loaders.original_checkpoint import DEFAULT_TEXT_ENCODER
from ..loaders.releases import LICENCE
from ..messages import one_line
from ..pipelines import AudioXPipeline

CARD = """\
---
{metadata}
---

# AudioX for diffusers

AudioX ([arXiv 2503.10522](https://arxiv.org/abs/2503.10522)) generates sound and music from any mix of text, video,
images and audio. This is {source}, converted for [diffusers](https://github.com/huggingface/diffusers) with
`audiox convert` of the package `audiox-diffusers`, which is needed to run it.

## Usage

```python
import audiox_diffusers
import torch
from audiox_diffusers.media import save_audio
from diffusers import DiffusionPipeline

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = DiffusionPipeline.from_pretrained({quoted}).to(device)
audio = pipe(prompt="waves on a pebble beach").audios[0]
save_audio("waves.wav", audio, pipe.vae.config.sampling_rate)
```

Without importing the package, which must be installed all the same:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({quoted}, custom_pipeline="pipeline", trust_remote_code=True)
```

On the command line:

```bash
audiox generate --model {word} --prompt "waves on a pebble beach" --output waves.wav
```

One window is up to {window:.4g} s of {channels}-channel audio at {rate} Hz. Longer audio is generated in windows that
overlap.

## Components

| component | class | parameters | dtype |
|---|---|---|---|
{components}

## Licence and source

The weights are under {licence}, the licence of the released AudioX: not for commercial use. They come from {source}. The
releases are published at [HKUSTAudio](https://huggingface.co/HKUSTAudio), whose authors say that the output is
watermarked.

The text encoder is {text_encoder}, under its own licence.
"""


def count_parameters(pipe: AudioXPipeline) -> dict[str, int]:
    """Return the number of parameters of each network, by component."""
    return {
        name: sum(parameter.numel() for parameter in component.parameters())
        for name, component in pipe.components.items()
        if isinstance(component, torch.nn.Module)
    }


def model_card(pipe: AudioXPipeline, source: str, text_encoder: str | None, name: str) -> str:
    """
    Return the text of `README.md`.

    Args:
        pipe: The converted pipeline.
        source: The released checkpoint: a name, a Hub id, or a path. The card shows the last part of a path.
        text_encoder: Folder or Hub id of the text encoder, `None` for the default one.
        name: What to load the model by: a Hub id, or the name of a folder.
    """
    published = public_name(source)
    data = ModelCardData(
        license=LICENCE.lower(),
        base_model=published if on_hub(source) else None,
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
    link = f"[{published}](https://huggingface.co/{published})"
    return CARD.format(
        metadata=data.to_yaml(),
        source=link if on_hub(source) else f"the released checkpoint {code(published)}",
        quoted=string(name),
        word=one_line(shlex.quote(name)),
        window=pipe.window_samples / rate,
        channels=pipe.vae.config.audio_channels,
        rate=rate,
        components="\n".join(rows),
        licence=LICENCE,
        text_encoder=code(public_name(text_encoder or DEFAULT_TEXT_ENCODER)),
    )
