"""Sounds made while training, from the same prompts each time."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.utils import logging

from ..media import load_audio, load_image, load_video, save_audio, spectrogram_picture
from ..media.files import check_positive
from ..pipelines import AudioXPipeline, load_features
from ..pipelines.features import is_features
from ..pipelines.prompt_files import FILE_KEYS, read_prompt_file

logger = logging.get_logger(__name__)


class Validation:
    """
    Makes a sound for each line of a file, writes it with a picture of its spectrogram, and gives both to the trackers.

    Args:
        args: of [`parse_args`]; `validation_prompts` are JSON lines, see [`read_prompt_file`]. `step-N` folders with
            sounds and pictures go into `validation` in the output folder.

    Raises:
        ValueError: naming the line that is wrong, or whose files cannot be read.
        FileNotFoundError: the file is missing.
    """

    def __init__(self, args: argparse.Namespace):
        prompts = args.validation_prompts
        if not prompts.is_file():
            raise FileNotFoundError(f"--validation_prompts {prompts}: no such file")
        self.requests = read_prompt_file(prompts)
        for number, request in self.requests.items():
            try:
                check_request(request)
            except (ValueError, OSError) as error:
                raise ValueError(f"--validation_prompts {prompts}, line {number}: {error}") from None
        self.folder = args.output_dir / "validation"
        self.options = {
            "num_inference_steps": args.validation_inference_steps,
            "guidance_scale": args.validation_guidance_scale,
        }

    @torch.no_grad()
    def run(self, pipe: AudioXPipeline, accelerator: Accelerator, step: int) -> list[Path]:
        """Make the sounds with `pipe`; returns the files. A line that fails is warned of: the training goes on."""
        folder = self.folder / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        pipe.set_progress_bar_config(leave=False, desc="validation")
        rate, files = pipe.vae.config.sampling_rate, []
        for number, request in self.requests.items():
            try:
                with accelerator.autocast():
                    sound = self._make(pipe, number, **request)
                file = folder / f"{number:03}.wav"
                save_audio(file, np.clip(sound, -1, 1), rate)
            except (ValueError, OSError) as error:
                logger.warning(f"validation at step {step}, line {number} of the prompts: {error}")
                continue
            picture = spectrogram_picture(sound, rate)
            picture.save(file.with_suffix(".png"))
            files.append(file)
            caption = request.get("prompt", "")
            self._track(accelerator, f"validation/{number:03}", caption, sound, rate, np.asarray(picture), step)
        return files

    def _make(
        self, pipe: AudioXPipeline, number: int, seed: int | None = None, length: float | None = None, **prompts: Any
    ) -> np.ndarray:
        generator = [torch.Generator().manual_seed(number - 1 if seed is None else seed)]
        return pipe(**prompts, audio_length_in_s=length, generator=generator, **self.options).audios[0]

    @staticmethod
    def _track(
        accelerator: Accelerator, name: str, caption: str, sound: np.ndarray, rate: int, picture: np.ndarray, step: int
    ) -> None:
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                # TensorBoard holds mono sound.
                tracker.writer.add_audio(name, np.clip(sound.mean(axis=0), -1, 1)[None], step, sample_rate=rate)
                tracker.writer.add_image(f"{name}/spectrogram", picture, step, dataformats="HWC")
            if tracker.name == "wandb":
                import wandb

                audio = wandb.Audio(sound.T, sample_rate=rate, caption=caption)
                tracker.log({name: audio, f"{name}/spectrogram": wandb.Image(picture, caption=caption)}, step=step)


def check_request(request: dict[str, Any]) -> None:
    """`ValueError` or `OSError` for what would only fail when the first sounds are made, after hours of training."""
    if not {"prompt", *FILE_KEYS} & set(request):
        raise ValueError("give at least one of prompt, video, image and audio")
    if {"video", "image"} <= set(request):
        raise ValueError("give either video or image, not both")
    if not 0 <= request.get("seed", 0) < 2**64:
        raise ValueError(f"seed must be in 0..2**64 - 1, got {request['seed']}")
    if "length" in request:
        check_positive("length", request["length"])
    if is_features(request.get("video")):
        load_features(request["video"], "video_embeds")
    elif "video" in request:
        load_video(request["video"], duration=0.1)
    if "image" in request:
        load_image(request["image"])
    if "audio" in request:
        load_audio(request["audio"], duration=0.1)
