"""The page of `audiox demo`: plain HTML that plays the files beside it."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..embedded import EMBEDDED_MODEL
from ..generation.request import read_request
from .parser import build_parser

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="audiox demo">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Samples of {model}</title>
<style>
  :root {{ color-scheme: light dark; --text: #1f2328; --faint: #59636e; --page: #ffffff; --card: #f6f8fa;
    --line: #d1d9e0 }}
  @media (prefers-color-scheme: dark) {{
    :root {{ --text: #e6edf3; --faint: #9198a1; --page: #0d1117; --card: #161b22; --line: #3d444d }}
  }}
  body {{ max-width: 58rem; margin: 0 auto; padding: 2rem 1rem 4rem; font: 1rem/1.5 system-ui, sans-serif;
    color: var(--text); background: var(--page) }}
  h1 {{ margin: 0; line-height: 1.2 }}
  h2 {{ margin: 3rem 0 0 }}
  p {{ margin: 0.5rem 0 1rem; max-width: 42rem; color: var(--faint) }}
  .cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem }}
  figure {{ display: flex; flex-direction: column; gap: 0.75rem; margin: 0; padding: 1rem; min-width: 0;
    border: 1px solid var(--line); border-radius: 0.5rem; background: var(--card) }}
  figcaption {{ font-weight: 600 }}
  audio, video, img {{ display: block; width: 100% }}
  video, .given {{ aspect-ratio: 1; max-width: 20rem; margin: 0 auto; border-radius: 0.25rem }}
  .sound {{ height: 11rem; border-radius: 0.25rem }}
  pre {{ margin: 1rem 0 0; padding: 0.75rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
    font: 0.875rem/1.6 ui-monospace, monospace; border-left: 3px solid var(--line); background: var(--card) }}
</style>
</head>
<body>
<h1>Samples of {model}</h1>
<p>{model} is the small model that comes with audiox-diffusers. It generated everything on this page on this machine,
offline. It knows a few simple sounds. Under each player are the waveform and the spectrogram, with low frequencies at the
bottom. The commands generate the same files again if you run them in the folder of this page.</p>
{sections}
<section>
<h2>With a released model</h2>
<p>AudioX generates any sound and music, in 44.1 kHz stereo. Use a GPU. The first use downloads 6 GB and converts them. The
licence is CC-BY-NC-4.0: not for commercial use.</p>
<pre><code>audiox generate --model audiox \\
  --prompt "waves on a pebble beach" \\
  --output waves.wav</code></pre>
</section>
</body>
</html>
"""

SECTION = """\
<section>
<h2>{title}</h2>
<p>{text}</p>
<div class="cards">
{figures}
</div>
<pre><code>{commands}</code></pre>
</section>"""

FIGURE = "<figure>\n<figcaption>{caption}</figcaption>\n{content}\n</figure>"


@dataclass(frozen=True)
class Example:
    """
    A sample on the page.

    Attributes:
        command (`str`): Words after `audiox` that generate it.
        caption (`str`): Caption of the result.
        input_caption (`str`, *optional*): Caption of the file that it is generated from.
    """

    command: str
    caption: str
    input_caption: str | None = None

    def args(self) -> Namespace:
        """Return the parsed command."""
        return build_parser().parse_args(shlex.split(self.command))

    def input(self) -> Path | None:
        """Return the file that the sample is generated from."""
        request = read_request(self.args())
        return request.video or request.image or request.audio

    def output(self) -> Path:
        """Return the file of the result."""
        return read_request(self.args()).output

    def sounds(self) -> list[Path]:
        """Return the files with sound. Each has a picture of it beside it."""
        return [path for path in (read_request(self.args()).audio, self.output()) if path is not None]

    def files(self) -> list[Path]:
        """Return all files of the sample."""
        files = [self.input(), self.output(), *map(picture_path, self.sounds())]
        return [path for path in files if path is not None]


@dataclass(frozen=True)
class Section:
    """A section of the page, with a text about its samples."""

    title: str
    text: str
    examples: tuple[Example, ...]


def picture_path(path: Path) -> Path:
    """Return where the picture of a sound is saved."""
    return path.with_suffix(".png")


def draw_page(sections: Sequence[Section]) -> str:
    """Return the page as HTML. Its links are the paths in the commands."""
    return PAGE.format(model=EMBEDDED_MODEL, sections="\n".join(map(_section, sections)))


def _section(section: Section) -> str:
    figures = []
    for example in section.examples:
        if example.input() is not None:
            figures.append(_figure(example, example.input(), example.input_caption))
        figures.append(_figure(example, example.output(), example.caption))
    return SECTION.format(
        title=escape(section.title),
        text=escape(section.text),
        figures="\n".join(figures),
        commands="\n\n".join(_wrap(example.command) for example in section.examples),
    )


def _figure(example: Example, path: Path, caption: str) -> str:
    link = escape(path.as_posix())
    content = {
        ".mp4": f'<video controls src="{link}"></video>',
        ".png": f'<img class="given" src="{link}" alt="{escape(caption)}">',
        ".wav": f'<audio controls src="{link}"></audio>',
    }[path.suffix]
    if path in example.sounds():
        picture = escape(picture_path(path).as_posix())
        content += f'\n<img class="sound" src="{picture}" alt="Waveform and spectrogram">'
    return FIGURE.format(caption=escape(caption), content=content)


def _wrap(command: str) -> str:
    """Return a command for the shell with one option per line."""
    return escape("audiox " + command.replace(" --", " \\\n  --"), quote=False)
