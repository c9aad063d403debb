"""Files of a result: the sound in every format, its picture, and how to generate it again."""

from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch

from ...generation.reproduce import command_line, curl_line, python_code
from ...media import MediaBytes, Recipe, load_audio, read_recipe, save_audio, save_video
from ...media.recipe import file_name
from ...media.sound_picture import sound_picture
from ..errors import ServingError, bad_field
from .tasks import LUFS, Form

AUDIO_FORMATS = (".wav", ".flac", ".mp3")
PICTURE_SIZE = (1040, 260)


@dataclass(frozen=True)
class Result:
    """A generated sound."""

    form: Form
    recipe: Recipe
    files: dict[str, Path]
    picture: Path
    note: str

    @property
    def label(self) -> str:
        """Name of the result in the history."""
        return f"{self.recipe.title or 'sound'} (seed {self.recipe.seed})"

    @property
    def is_film(self) -> bool:
        return ".mp4" in self.files

    def command_line(self) -> str:
        return command_line(self.recipe, self._output) or "# No command has an option for LoRA adapters."

    def python_code(self) -> str:
        return python_code(self.recipe, self._output)

    def curl_line(self, url: str) -> str:
        return curl_line(self.recipe, url, self._output)

    @property
    def _output(self) -> str:
        return "sound.mp4" if self.is_film else "sound.wav"


def write_results(form: Form, sounds: tuple[Path, ...], folder: Path) -> list[Result]:
    """Write the sounds of a run to new folders."""
    return [_write_result(form, sound, folder / uuid4().hex) for sound in sounds]


def _write_result(form: Form, sound: Path, folder: Path) -> Result:
    folder.mkdir(mode=0o700)
    recipe = read_recipe(sound)
    names = {name: file_name(path) for name, path in form.files.items()}
    recipe = replace(recipe, **names)
    waveform, rate = load_audio(sound, max_channels=8)
    note = ""
    if form.level == LUFS:
        waveform, loudness = set_loudness(waveform, rate, form.loudness)
        recipe = replace(recipe, loudness=loudness)
        if loudness is None:
            note = "The sound is silent, so its loudness was left alone."
        elif loudness != form.loudness:
            note = f"{form.loudness:g} LUFS would clip. The sound has {loudness:g} LUFS, the most that does not."
    files = {}
    for suffix in AUDIO_FORMATS:
        if suffix == ".mp3" and len(waveform) > 2:
            continue
        files[suffix] = folder / f"audiox-{recipe.seed}{suffix}"
        save_audio(files[suffix], waveform, rate, recipe=recipe)
    if "video" in form.media:
        files[".mp4"] = folder / f"audiox-{recipe.seed}.mp4"
        save_video(files[".mp4"], form.media["video"], waveform, rate, recipe=recipe)
    picture = folder / "picture.png"
    sound_picture(files[".wav"]).resize(PICTURE_SIZE).save(picture)
    return Result(form, recipe, files, picture, note)


def set_loudness(waveform: torch.Tensor, rate: int, loudness: float) -> tuple[torch.Tensor, float | None]:
    """
    Set the integrated loudness of a sound (ITU-R BS.1770-4) without clipping.

    Args:
        waveform (`torch.Tensor`): Shape `[channels, samples]`, in -1..1.
        rate (`int`): Sampling rate in Hz.
        loudness (`float`): Loudness in LUFS.

    Returns:
        `tuple`: The sound and its loudness, which is lower where `loudness` would clip. `None` for a silent sound.

    Raises:
        ServingError: `loudness` is out of range, or the sound is too short to measure.
    """
    import pyloudnorm

    if not -70 < loudness <= 0:
        raise bad_field("loudness", "must be above -70 and at most 0 LUFS")
    samples = waveform.numpy().T.astype(np.float64)
    try:
        measured = pyloudnorm.Meter(rate).integrated_loudness(samples)
    except ValueError:
        raise bad_field("loudness", "needs a sound of at least 0.4 s with at most 5 channels") from None
    if not np.isfinite(measured):
        return waveform, None
    headroom = -20 * np.log10(max(np.abs(samples).max(), 1e-9))
    gain = min(loudness - measured, headroom)
    reached = loudness if gain == loudness - measured else round(float(measured + gain), 1)
    return waveform * 10 ** (gain / 20), reached


def dropped_recipe(path: str) -> Recipe:
    """
    Return the recipe of an uploaded file.

    Raises:
        ServingError: It has none.
    """
    try:
        recipe = read_recipe(MediaBytes(Path(path).read_bytes(), file_name(path)))
    except (ValueError, OSError) as error:
        raise ServingError(400, str(error)) from None
    if recipe is None:
        raise ServingError(400, f"{file_name(path)}: carries no settings; it was not generated with audiox")
    return recipe
