"""Examples of the page, which work with audiox-tiny. Their files are rendered scenes."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...media import save_audio, save_video
from ...scenes import Event, Scene
from ...scenes.examples import FPS, GAP, PICTURE, SIZE, VIDEO, sound_with_gap
from .tasks import Task

RATE = 16000


@dataclass(frozen=True)
class Example:
    """What an example puts into the page."""

    label: str
    task: Task
    prompt: str = ""
    video: str | None = None
    image: str | None = None
    audio: str | None = None
    spans: str = ""


EXAMPLES = (
    Example("Three bell strikes", Task.TEXT, "three bell strikes"),
    Example("A siren, then two drum beats", Task.TEXT, "a siren, then two drum beats"),
    Example("A film of drum and bell", Task.VIDEO, video="drum-and-bell.mp4"),
    Example("A picture of a siren", Task.IMAGE, image="siren.png"),
    Example(
        "Fill a gap in an engine", Task.INPAINT, "an engine", audio="engine-with-gap.wav", spans="{}-{}".format(*GAP)
    ),
    Example("Continue the rain", Task.EXTEND, "rain", audio="rain.wav"),
    Example("Vary two drum beats", Task.VARY, "two drum beats", audio="drum-beats.wav"),
)


def write_example_files(folder: Path) -> None:
    """Write the media of the examples."""
    save_video(folder / "drum-and-bell.mp4", VIDEO.frames(FPS, SIZE), fps=FPS)
    Image.fromarray(PICTURE.picture(SIZE)).save(folder / "siren.png")
    save_audio(folder / "engine-with-gap.wav", sound_with_gap(RATE, 1), RATE)
    drums = Scene([Event("drum", 0.5, 0.4), Event("drum", 1.5, 0.4)], 3.0, seed=4)
    rain = Scene([Event("rain", 0.0, 2.0)], 2.0, seed=5)
    for name, scene in (("drum-beats.wav", drums), ("rain.wav", rain)):
        save_audio(folder / name, scene.audio(RATE, 1), RATE)
