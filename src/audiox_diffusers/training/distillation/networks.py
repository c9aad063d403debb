"""The networks of a distillation: teacher, student and a companion, stored in full or as adapters of one transformer."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from .losses import Predict

STUDENT, COMPANION = "default", "companion"


class StudentModel(nn.Module):
    """
    The student as the module that accelerate wraps.

    Args:
        transformer: Network to train, or network with the adapter to train.
        autocast_dtype: Dtype of mixed precision, `None` without.
    """

    def __init__(self, transformer: nn.Module, autocast_dtype: torch.dtype | None = None):
        super().__init__()
        self.transformer = transformer
        self.autocast_dtype = autocast_dtype

    def forward(
        self, noised_latents: torch.Tensor, timestep: torch.Tensor, condition_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity, `[B, C, L]`, for timesteps `[B]` and a context `[B, tokens, width]`."""
        return _predict(self.transformer, self.autocast_dtype, noised_latents, timestep, condition_embeds)


class FullNetworks:
    """
    Three copies of the transformer.

    The companion is the fake score of distribution matching, or the student's moving average.

    Args:
        transformer: The teacher's transformer, which becomes the student.
        guidance_scale: Guidance of the teacher.
        autocast_dtype: Dtype of mixed precision, `None` without.
    """

    def __init__(self, transformer: nn.Module, guidance_scale: float, autocast_dtype: torch.dtype | None = None):
        self.guidance_scale = guidance_scale
        self.autocast_dtype = autocast_dtype
        self._teacher = copy.deepcopy(transformer).requires_grad_(False).eval()
        self._companion = copy.deepcopy(transformer).requires_grad_(True).train()
        self.model = StudentModel(transformer.requires_grad_(True).train(), autocast_dtype)

    def to(self, device: torch.device) -> None:
        """Move teacher and companion to a device. accelerate moves the student."""
        self._teacher.to(device)
        self._companion.to(device)

    def companion_parameters(self) -> dict[str, nn.Parameter]:
        """Return the companion's trained parameters by name."""
        return dict(self._companion.named_parameters())

    def student_parameters(self) -> dict[str, nn.Parameter]:
        """Return the student's parameters, by the names of the companion's."""
        return dict(self.model.transformer.named_parameters())

    def teacher(self, condition_embeds: torch.Tensor) -> Predict:
        """Return the guided velocity of the teacher, without gradient."""
        return self._guided(self._teacher, condition_embeds)

    def companion(self, condition_embeds: torch.Tensor) -> Predict:
        """Return the velocity of the companion."""
        return self._plain(self._companion, condition_embeds)

    @contextmanager
    def training_companion(self) -> Iterator[None]:
        """Train the companion inside this context."""
        yield

    def _plain(self, transformer: nn.Module, condition_embeds: torch.Tensor) -> Predict:
        def predict(noised: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return _predict(transformer, self.autocast_dtype, noised, timestep, condition_embeds)

        return predict

    def _guided(self, transformer: nn.Module, condition_embeds: torch.Tensor) -> Predict:
        """Guide with the null context, which is zero, as sampling does."""
        if self.guidance_scale == 1:
            return torch.no_grad()(self._plain(transformer, condition_embeds))
        plain = self._plain(transformer, torch.cat((torch.zeros_like(condition_embeds), condition_embeds)))

        @torch.no_grad()
        def predict(noised: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            velocity = plain(torch.cat((noised, noised)), torch.cat((timestep, timestep))).float()
            unconditional, conditional = velocity.chunk(2)
            return unconditional + self.guidance_scale * (conditional - unconditional)

        return predict


class AdapterNetworks(FullNetworks):
    """
    Student and companion as two LoRA adapters (arXiv 2106.09685) of one frozen transformer, which is the teacher.

    Args:
        transformer: The teacher's transformer.
        config: Configuration of both adapters.
        seed: Seed of their initialization.
        guidance_scale, autocast_dtype: See [`FullNetworks`].
    """

    def __init__(
        self,
        transformer: nn.Module,
        config: LoraConfig,
        seed: int,
        guidance_scale: float,
        autocast_dtype: torch.dtype | None = None,
    ):
        self.guidance_scale = guidance_scale
        self.autocast_dtype = autocast_dtype
        self._transformer = transformer.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in (COMPANION, STUDENT):
                with warnings.catch_warnings():
                    # peft warns of a second adapter.
                    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                    transformer.add_adapter(config, name)
        cast_training_params(transformer)
        transformer.set_adapters(COMPANION)
        cast_training_params(transformer)
        transformer.set_adapters(STUDENT)
        self.model = StudentModel(transformer.train(), autocast_dtype)

    def to(self, device: torch.device) -> None:
        """Do nothing: accelerate moves the transformer with the student."""

    def companion_parameters(self) -> dict[str, nn.Parameter]:
        return self._adapter(COMPANION)

    def student_parameters(self) -> dict[str, nn.Parameter]:
        return self._adapter(STUDENT)

    def _adapter(self, name: str) -> dict[str, nn.Parameter]:
        part = f".{name}."
        parameters = self._transformer.named_parameters()
        return {key.replace(part, "."): parameter for key, parameter in parameters if part in key}

    def teacher(self, condition_embeds: torch.Tensor) -> Predict:
        guided = self._guided(self._transformer, condition_embeds)

        def predict(noised: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            self._transformer.disable_adapters()
            try:
                return guided(noised, timestep)
            finally:
                self._transformer.enable_adapters()

        return predict

    def companion(self, condition_embeds: torch.Tensor) -> Predict:
        plain = self._plain(self._transformer, condition_embeds)

        def predict(noised: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            with self.training_companion():
                return plain(noised, timestep)

        return predict

    @contextmanager
    def training_companion(self) -> Iterator[None]:
        # Until the backward pass is over: checkpointed blocks run again in it.
        active = self._transformer.active_adapters()
        self._transformer.set_adapters(COMPANION)
        try:
            yield
        finally:
            self._transformer.set_adapters(active)


def _predict(
    transformer: nn.Module, dtype: torch.dtype | None, noised: torch.Tensor, timestep: torch.Tensor, context: Any
) -> torch.Tensor:
    with torch.autocast(noised.device.type, dtype, enabled=dtype is not None):
        return transformer(noised, timestep, context, return_dict=False)[0]
