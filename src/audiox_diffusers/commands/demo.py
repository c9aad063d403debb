"""`audiox demo`: what the embedded model makes of text, a video, a picture and a sound, and a page that plays it."""

import shlex
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..atomic import check_target, filling
from ..media import load_audio, save_audio, save_video, spectrogram_picture
from ..pipelines import AudioXInpaintPipeline, AudioXPipeline
from ..scenes import Event, Scene
from .demo_page import Example, Section, draw_page, spectrogram_path
from .edit import make_edit, read_edit
from .loading import load_pipeline, read_placement
from .parser import build_parser
from .quiet import quiet_libraries
from .request import read_request
from .sounds import Settings, make
from .terminal import say

INDEX = Path("index.html")

VIDEO = Scene(
    [Event("drum", 0.4, 0.4), Event("drum", 1.2, 0.4), Event("bell", 2.0, 1.0), Event("bell", 3.0, 1.0)], 4.0, seed=1
)
PICTURE = Scene([Event("siren", 0.0, 4.0)], 4.0, seed=2)
SOUND = Scene([Event("engine", 0.0, 4.0)], 4.0, seed=3)
GAP = (1.5, 2.5)
FPS, SIZE = 25, 192

# Title, text and commands of the page's sections. The commands are run as they are shown, but in one process, with one
# model, and in the folder that is to be written.
SECTIONS = (
    (
        "Text to sound",
        "The captions are of words that the model was trained on.",
        (
            'generate --prompt "three bell strikes" --output three-bell-strikes.wav',
            'generate --prompt "rain" --output rain.wav',
            'generate --prompt "a siren, then two drum beats" --output a-siren-then-two-drum-beats.wav',
            'generate --prompt "a bird singing" --output a-bird-singing.wav',
        ),
    ),
    (
        "Video to sound",
        "A drum flashes at 0.4 and 1.2 seconds, and a bell at 2 and 3. The model is given the picture alone.",
        ("generate --video scene.mp4 --output scene-with-sound.mp4",),
    ),
    (
        "Picture to sound",
        "The picture is of a siren, which is not said.",
        ("generate --image picture.png --output sound-of-the-picture.wav",),
    ),
    (
        "A gap filled",
        "The sound of an engine is silent from 1.5 to 2.5 seconds. That second is made, the rest stays as it is."
        " Of four seeds one leaves half of it silent; this is another.",
        ('edit --audio gap.wav --prompt "an engine" --inpaint 1.5-2.5 --seed 1 --output filled.wav',),
    ),
)


def run(args: Namespace) -> int:
    """Run `audiox demo` and return the exit code."""
    folder = Path(args.output)
    sections = [
        Section(title, text, [Example(command, read_request(read_command(command))) for command in commands])
        for title, text, commands in SECTIONS
    ]
    check_folder(folder, sections)
    with filling(folder) as temporary, quiet_libraries():
        for name in make_files(temporary, sections):
            say(f"made {name}")
    say(f"wrote {folder}: open {folder / INDEX}")
    return 0


def read_command(command: str) -> Namespace:
    """The arguments of a command line that is written without `audiox`."""
    return build_parser().parse_args(shlex.split(command))


def check_folder(folder: Path, sections: list[Section]) -> None:
    """Raise a built-in `OSError` unless all files can be put into the folder, which may be missing."""
    if not folder.exists():
        check_target(folder)
        return
    for section in sections:
        for example in section.examples:
            for path in (*example.given(), *example.heard(), *map(spectrogram_path, example.heard())):
                check_target(folder / path)
    check_target(folder / INDEX)


def make_files(folder: Path, sections: list[Section]) -> Iterator[Path]:
    """Write all files into the folder; gives the name of each when it is there."""
    examples = [example for section in sections for example in section.examples]
    args = read_command(examples[0].command)
    pipe, _ = load_pipeline(args.model, *read_placement(args))
    pipe.set_progress_bar_config(disable=True)
    draw_given(folder, pipe)
    for example in examples:
        yield from example.given()
        make_example(folder, pipe, example)
        yield example.request.output
        for path in example.heard():
            spectrogram_picture(*load_audio(folder / path)).save(folder / spectrogram_path(path))
            yield spectrogram_path(path)
    (folder / INDEX).write_text(draw_page(sections), encoding="utf-8")
    yield INDEX


def draw_given(folder: Path, pipe: AudioXPipeline) -> None:
    """What the commands are given: a video without sound, a picture, and a sound with a gap."""
    save_video(folder / "scene.mp4", VIDEO.frames(FPS, SIZE), fps=FPS)
    Image.fromarray(PICTURE.picture(SIZE)).save(folder / "picture.png")
    rate = pipe.vae.config.sampling_rate
    sound = SOUND.audio(rate, pipe.vae.config.audio_channels)
    first, last = (round(second * rate) for second in GAP)
    sound[:, first:last] = 0
    save_audio(folder / "gap.wav", sound, rate)


def make_example(folder: Path, pipe: AudioXPipeline, example: Example) -> None:
    """What the command of an example does, with its files in the folder."""
    paths = {name: getattr(example.request, name) for name in ("output", "video", "image", "audio")}
    request = replace(example.request, **{name: path and folder / path for name, path in paths.items()})
    args = read_command(example.command)
    settings = Settings.from_args(args)
    if args.command == "edit":
        edit = AudioXInpaintPipeline.from_pipe(pipe)
        edit.set_progress_bar_config(disable=True)
        make_edit(edit, request, settings, read_edit(args))
    else:
        make(pipe, request, settings)
