"""A request for one sound, from the command line, a line of a batch, or a client of the server."""

from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..media.formats import AUDIO_FORMATS, VIDEO_FORMATS
from ..pipelines.requests import FILE_KEYS, check_request, check_request_paths

STDOUT = Path("-")


@dataclass
class Request:
    """Inputs, seed and output of a sound."""

    output: Path
    seed: int
    prompt: str | None = None
    negative_prompt: str | None = None
    video: Path | None = None
    image: Path | None = None
    audio: Path | None = None
    length: float | None = None
    negative_video: Path | None = None
    negative_audio: Path | None = None

    @property
    def keeps_picture(self) -> bool:
        """Whether the output is a video file."""
        return self.output.suffix.lower() in VIDEO_FORMATS

    @property
    def modalities(self) -> list[str]:
        """Kinds of prompts that are given. A picture counts as video."""
        given = {"text": self.prompt, "video": self.video or self.image, "audio": self.audio}
        return [name for name, value in given.items() if value is not None]

    @property
    def negatives(self) -> dict[str, str]:
        """Names of the negative prompts that are given, by the kind of prompt."""
        names = {"text": "negative_prompt", "video": "negative_video", "audio": "negative_audio"}
        return {modality: name for modality, name in names.items() if getattr(self, name) is not None}

    @property
    def inputs(self) -> dict[str, Path]:
        """The files that are given, by argument of the pipeline."""
        return {name: path for name in FILE_KEYS if (path := getattr(self, name)) is not None}

    def check(self) -> None:
        """Raise `ValueError` if a value is out of range, or the output needs an input that is missing."""
        suffix = self.output.suffix.lower()
        if self.output != STDOUT and suffix not in AUDIO_FORMATS and suffix not in VIDEO_FORMATS:
            known = ", ".join([*AUDIO_FORMATS, *VIDEO_FORMATS])
            raise ValueError(f"output {self.output}: unknown extension {suffix!r}, use one of {known}")
        check_request(asdict(self))
        if self.keeps_picture and self.video is None:
            raise ValueError(f"output {self.output}: a video file needs a video to take the picture from")
        if self.keeps_picture and self.video.suffix == ".safetensors":
            raise ValueError(f"output {self.output}: {self.video} contains features of a video and no picture")

    def check_paths(self) -> None:
        """Raise `FileNotFoundError` if an input does not exist."""
        check_request_paths(asdict(self))

    def conditions(self) -> dict[str, Any]:
        """Return the prompt and the files, by the pipeline's names, and the negative ones that are given."""
        names = ("prompt", "video", "image", "audio", *self.negatives.values())
        return {name: getattr(self, name) for name in names}


def read_request(args: Namespace) -> Request:
    """Return the request of a command line."""
    paths = {name: getattr(args, name) for name in ("output", *FILE_KEYS)}
    return Request(
        seed=args.seed,
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        length=args.length,
        **{name: None if path is None else Path(path) for name, path in paths.items()},
    )
