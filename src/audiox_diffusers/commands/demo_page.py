"""The page of `audiox demo`: plain HTML that plays the files beside it."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..embedded import EMBEDDED_MODEL
from .sounds import Request

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sounds of {model}</title>
<style>
  body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font-family: sans-serif; line-height: 1.5;
    color: #222; background: #fff }}
  section {{ display: flex; flex-wrap: wrap; gap: 1.5rem }}
  h2, section > p {{ width: 100%; margin: 1rem 0 0 }}
  article {{ flex: 1 1 26rem; min-width: 0; padding: 1rem; border: 1px solid #ccc; border-radius: 0.5rem }}
  h3 {{ margin: 0; font-size: 1rem }}
  figure {{ margin: 1rem 0 }}
  figcaption {{ font-size: 0.9rem; color: #555 }}
  audio, .spectrogram {{ display: block; width: 100% }}
  .spectrogram {{ height: 8rem; margin-top: 0.5rem }}
  video, .picture {{ display: block; width: 16rem }}
  pre {{ margin: 0; padding: 0.5rem; overflow-x: auto; background: #f4f4f4 }}
</style>
</head>
<body>
<h1>Sounds of {model}</h1>
<p>All of this was made on this machine by <b>{model}</b>, the small model that comes with audiox-diffusers. It knows
some simple sounds. Below each sound is the command that makes it, to be run in the folder of this page, and its
spectrogram: time from left to right, low frequencies at the bottom.</p>
{sections}
</body>
</html>
"""

SECTION = """\
<section>
<h2>{title}</h2>
<p>{text}</p>
{examples}
</section>"""

EXAMPLE = """\
<article>
<h3>{prompt}</h3>
{figures}
<pre><code>audiox {command}</code></pre>
</article>"""

FIGURE = "<figure><figcaption>{caption}: {name}</figcaption>{shown}</figure>"


@dataclass(frozen=True)
class Example:
    """A sound of the page: the words that follow `audiox` to make it, and what they ask for."""

    command: str
    request: Request

    def given(self) -> list[Path]:
        """The files that the sound is made of."""
        return [path for path in (self.request.video, self.request.image, self.request.audio) if path is not None]

    def heard(self) -> list[Path]:
        """The files with sound, each of which has its spectrogram beside it."""
        return [path for path in (self.request.audio, self.request.output) if path is not None]


@dataclass(frozen=True)
class Section:
    """A part of the page, with a text about all its sounds."""

    title: str
    text: str
    examples: list[Example]


def spectrogram_path(path: Path) -> Path:
    """Where the spectrogram of a sound is."""
    return path.with_suffix(".png")


def draw_page(sections: list[Section]) -> str:
    """The page as HTML. Its links are the paths of the requests."""
    return PAGE.format(model=EMBEDDED_MODEL, sections="\n".join(map(_section, sections)))


def _section(section: Section) -> str:
    examples = "\n".join(map(_example, section.examples))
    return SECTION.format(title=escape(section.title), text=escape(section.text), examples=examples)


def _example(example: Example) -> str:
    prompt = example.request.prompt
    figures = [_figure("given", path, path in example.heard()) for path in example.given()]
    figures.append(_figure("made", example.request.output, True))
    return EXAMPLE.format(
        prompt="no text" if prompt is None else f"“{escape(prompt)}”",
        figures="\n".join(figures),
        command=escape(example.command, quote=False),
    )


def _figure(caption: str, path: Path, heard: bool) -> str:
    link = escape(path.as_posix())
    shown = {
        ".mp4": f'<video controls src="{link}"></video>',
        ".png": f'<img class="picture" src="{link}" alt="{link}">',
        ".wav": f'<audio controls src="{link}"></audio>',
    }[path.suffix]
    if heard:
        spectrogram = escape(spectrogram_path(path).as_posix())
        shown += f'<img class="spectrogram" src="{spectrogram}" alt="spectrogram of {link}">'
    return FIGURE.format(caption=caption, name=f'<a href="{link}">{link}</a>', shown=shown)
