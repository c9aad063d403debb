"""Guidance of a sound, from options to the arguments of a pipeline."""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .request import Request


@dataclass(frozen=True)
class Guidance:
    """
    Guidance settings of a sound.

    Args:
        scale (`float` or `dict[str, float]`, *optional*): Scale, or weights by kind of prompt. Defaults to the model's
            own.
        rescale (`float`, *optional*): Rescaling of guided predictions.
        interval (`tuple[float, float]`, *optional*): Times between which guidance is on.
        guider (`str`, *optional*): A guider, such as `"apg"` or `"apg:eta=0.5"`.
    """

    scale: float | dict[str, float] | None = None
    rescale: float | None = None
    interval: tuple[float, float] | None = None
    guider: str | None = None

    @classmethod
    def from_args(cls, args: Namespace) -> "Guidance":
        """Return the guidance of a command line."""
        return cls(args.guidance, args.guidance_rescale, args.guidance_interval, args.guider)

    def check(self) -> None:
        """Raise `GuidanceError` if the options exclude each other."""
        if self.guider is None:
            return
        if isinstance(self.scale, dict):
            raise GuidanceError("guidance", "must be one number with a guider, not weights by kind of prompt")
        if self.interval is not None:
            raise GuidanceError("guidance_interval", "does not go with a guider")
        if self.rescale:
            raise GuidanceError("guidance_rescale", "does not go with a guider")

    def check_negatives(self, request: Request) -> None:
        """Raise `GuidanceError` if weights would leave a negative prompt without effect."""
        if not isinstance(self.scale, dict):
            return
        for modality, name in request.negatives.items():
            if self.scale.get(modality, 1) == 1:
                raise GuidanceError(
                    "guidance",
                    f"needs a weight for {modality} other than 1: without it, the {name.replace('_', ' ')} has no effect",
                )

    def check_weights(self, request: Request) -> None:
        """Raise `GuidanceError` if there is a weight for a kind of prompt that a sound lacks."""
        for modality in self.scale if isinstance(self.scale, dict) else ():
            if modality not in request.modalities and modality not in request.negatives:
                raise GuidanceError(
                    "guidance", f"has a weight for {modality}, but the sound has no prompt of that kind"
                )

    def weights(self, requests: Iterable[Request]) -> dict[str, float]:
        """Return the weights of the kinds of prompts that any of the requests has."""
        given = {name for request in requests for name in (*request.modalities, *request.negatives)}
        return {name: weight for name, weight in self.scale.items() if name in given}

    def arguments(self, requests: list[Request], default_scale: float) -> dict[str, Any]:
        """Return the arguments of the pipeline. `default_scale` is that of the model."""
        if self.guider is not None:
            # Here, because it imports diffusers.
            from ..pipelines.guidance import create_guider

            return {"guider": create_guider(self.guider, default_scale if self.scale is None else self.scale)}
        arguments = {
            "guidance_scale": self.weights(requests) or 1.0 if isinstance(self.scale, dict) else self.scale,
            "guidance_rescale": self.rescale,
            "guidance_interval": self.interval,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def recipe(self, request: Request, default_scale: float) -> dict[str, Any]:
        """Return the fields of a recipe."""
        scale, weights = default_scale if self.scale is None else self.scale, {}
        if isinstance(scale, dict):
            weights = self.weights([request])
            scale = None if weights else 1.0
        return {
            "guidance": scale,
            "guidance_weights": tuple(weights.items()),
            "guidance_interval": () if self.interval is None else (self.interval,),
            "guidance_rescale": self.rescale or 0.0,
            "guider": self.guider,
        }


class GuidanceError(ValueError):
    """
    An error in the guidance of a request.

    Args:
        name (`str`): Name of the option, with underscores.
        message (`str`): What is wrong with it.
    """

    def __init__(self, name: str, message: str):
        super().__init__(f"--{name.replace('_', '-')} {message}")
        self.name, self.message = name, message
