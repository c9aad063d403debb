"""`audiox demo`: samples of the embedded model, and a page that plays them."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..atomic import check_target, filling
from ..generation.loading import load_pipeline, read_placement
from ..generation.request import read_request
from ..generation.sounds import Settings, make, make_edit
from ..media import save_audio, save_video
from ..media.sound_picture import sound_picture
from ..pipelines import AudioXInpaintPipeline, AudioXPipeline
from ..scenes.examples import FPS, PICTURE, SIZE, VIDEO, sound_with_gap
from .checks import DEMO_PAGE
from .demo_page import Example, Section, draw_page, picture_path
from .edit import read_edit
from .quiet import quiet_libraries
from .terminal import say

INDEX = Path(DEMO_PAGE)

# The commands run as the page shows them, but in one process, with one model, and in the folder of the page.
SECTIONS = (
    Section(
        "From text",
        "The model was trained on captions like these.",
        (
            Example('generate --prompt "three bell strikes" --output three-bell-strikes.wav', "Three bell strikes"),
            Example('generate --prompt "rain" --output rain.wav', "Rain"),
            Example(
                'generate --prompt "a siren, then two drum beats" --output a-siren-then-two-drum-beats.wav',
                "A siren, then two drum beats",
            ),
            Example('generate --prompt "a bird singing" --output a-bird-singing.wav', "A bird singing"),
        ),
    ),
    Section(
        "From video",
        "A drum flashes at 0.4 and 1.2 seconds, and a bell at 2 and 3. The model sees only the picture.",
        (
            Example(
                "generate --video scene.mp4 --output scene-with-sound.mp4", "With generated sound", "The silent video"
            ),
        ),
    ),
    Section(
        "From a picture",
        "The picture shows the symbol of a siren. There is no prompt.",
        (Example("generate --image picture.png --output sound-of-the-picture.wav", "Generated sound", "The picture"),),
    ),
    Section(
        "Filling a gap",
        "An engine is silent from 1.5 to 2.5 seconds. The model fills the gap, and the rest stays as it is. Of four"
        " seeds that we tried, one leaves half of the gap silent; this is another one.",
        (
            Example(
                'edit --audio gap.wav --prompt "an engine" --inpaint 1.5-2.5 --seed 1 --output filled.wav',
                "The gap filled",
                "An engine with a gap",
            ),
        ),
    ),
)


def run(args: Namespace) -> int:
    """Run `audiox demo` and return the exit code."""
    folder = Path(args.output)
    for section in SECTIONS:
        for example in section.examples:
            for path in example.files():
                _check_file(folder, path)
    _check_file(folder, INDEX)
    with filling(folder) as temporary, quiet_libraries():
        for name in make_files(temporary):
            say(f"made {name}")
    say(f"wrote {folder}: open {folder / INDEX}")
    return 0


def _check_file(folder: Path, path: Path) -> None:
    check_target(folder / path if folder.exists() else folder)


def make_files(folder: Path) -> Iterator[Path]:
    """Write all files to the folder, and yield the name of each."""
    examples = [example for section in SECTIONS for example in section.examples]
    args = examples[0].args()
    pipe, _ = load_pipeline(args.model, read_placement(args))
    pipe.set_progress_bar_config(disable=True)
    draw_inputs(folder, pipe)
    for example in examples:
        make_example(folder, pipe, example)
        yield from example.files()
    (folder / INDEX).write_text(draw_page(SECTIONS), encoding="utf-8")
    yield INDEX


def draw_inputs(folder: Path, pipe: AudioXPipeline) -> None:
    """Write the inputs of the commands: a silent video, a picture, and a sound with a gap."""
    save_video(folder / "scene.mp4", VIDEO.frames(FPS, SIZE), fps=FPS)
    Image.fromarray(PICTURE.picture(SIZE)).save(folder / "picture.png")
    rate, channels = pipe.vae.config.sampling_rate, pipe.vae.config.audio_channels
    save_audio(folder / "gap.wav", sound_with_gap(rate, channels), rate)


def make_example(folder: Path, pipe: AudioXPipeline, example: Example) -> None:
    """Run an example's command in the folder, and draw its sounds."""
    args = example.args()
    request = read_request(args)
    paths = {name: getattr(request, name) for name in ("output", "video", "image", "audio")}
    request = replace(request, **{name: path and folder / path for name, path in paths.items()})
    settings = Settings.from_args(args)
    if args.command == "edit":
        edit = AudioXInpaintPipeline.from_pipe(pipe)
        edit.set_progress_bar_config(disable=True)
        make_edit(edit, request, settings, read_edit(args))
    else:
        make(pipe, request, settings)
    for path in example.sounds():
        sound_picture(folder / path).save(folder / picture_path(path))
