"""Audio generated during training and for model cards."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.utils import logging

from ..media import save_audio, spectrogram_picture
from ..messages import first_line
from ..pipelines import AudioXPipeline
from ..pipelines.prompt_files import read_prompt_file
from ..pipelines.requests import check_request, check_request_files
from .arguments import TrainingArguments
from .run.log import warned
from .validation_metrics import ValidationMetrics

logger = logging.get_logger(__name__)

# Most samples in a model card.
SAMPLES = 2


class Validation:
    """
    Generate audio for each line of `--validation_prompts`, the same at every step.

    `run` writes audio and spectrograms to `validation/step-N` in the output folder, and sends both to the trackers.

    Args:
        args: Options of the run. For the lines of `validation_prompts` see [`read_prompt_file`].

    Raises:
        ValueError: A line is wrong, or one of its files cannot be read.
        FileNotFoundError: The file is missing.
    """

    def __init__(self, args: TrainingArguments):
        prompts = args.validation_prompts
        if not prompts.is_file():
            raise FileNotFoundError(f"--validation_prompts {prompts}: no such file")
        self.args = args
        self.requests = read_prompt_file(prompts)
        for number, request in self.requests.items():
            try:
                check_request(request)
                check_request_files(request)
            except (ValueError, OSError) as error:
                raise ValueError(f"--validation_prompts {prompts}, line {number}: {error}") from None
        self.metrics = None if args.validation_metrics is None else ValidationMetrics(args, self.requests)

    @torch.no_grad()
    def run(self, pipe: AudioXPipeline, accelerator: Accelerator, step: int) -> list[Path]:
        """Generate with `pipe` and return the audio files. A line that fails is skipped with a warning."""
        folder = self.args.output_dir / "validation" / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        pipe.set_progress_bar_config(leave=False, desc="validation")
        rate, files = pipe.vae.config.sampling_rate, []
        for number, request in self.requests.items():
            file = folder / f"{number:03}.wav"
            try:
                with accelerator.autocast():
                    audio = write_sample(pipe, self.args, {"seed": number - 1, **request}, file)
            except Exception as error:  # one line must not end the run
                logger.warning(f"validation at step {step}, line {number} of the prompts: {first_line(error)}")
                continue
            picture = spectrogram_picture(audio, rate)
            picture.save(file.with_suffix(".png"))
            files.append(file)
            caption = request.get("prompt", "")
            with warned(f"validation at step {step}, line {number}: the tracker failed"):
                self._track(accelerator, f"validation/{number:03}", caption, audio, rate, np.asarray(picture), step)
        if self.metrics is not None and files:
            self.metrics.measure(folder, accelerator, step)
        return files

    @staticmethod
    def _track(
        accelerator: Accelerator, name: str, caption: str, audio: np.ndarray, rate: int, picture: np.ndarray, step: int
    ) -> None:
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                # TensorBoard stores mono audio.
                tracker.writer.add_audio(name, np.clip(audio.mean(axis=0), -1, 1)[None], step, sample_rate=rate)
                tracker.writer.add_image(f"{name}/spectrogram", picture, step, dataformats="HWC")
            if tracker.name == "wandb":
                import wandb

                clip = wandb.Audio(audio.T, sample_rate=rate, caption=caption)
                tracker.log({name: clip, f"{name}/spectrogram": wandb.Image(picture, caption=caption)}, step=step)


def write_samples(
    pipe: AudioXPipeline, args: TrainingArguments, prompts: list[str], folder: Path
) -> list[tuple[str, str]]:
    """
    Generate samples for a model card, for the first lines of `--validation_prompts` or else for `prompts`.

    Returns:
        File name and caption of each sample. After a sample that fails there are no more, and a warning.
    """
    folder.mkdir()
    requests = [{"prompt": prompt} for prompt in prompts]
    samples = []
    try:
        if args.validation_prompts is not None:
            requests = list(read_prompt_file(args.validation_prompts).values())
        for number, request in enumerate(requests[:SAMPLES]):
            name = f"{number:03}.wav"
            write_sample(pipe, args, {"seed": number, **request}, folder / name)
            samples.append((name, request.get("prompt", "")))
    except Exception as error:  # the weights are what matters
        logger.warning(f"samples of the model card: {first_line(error)}")
    return samples


def write_sample(pipe: AudioXPipeline, args: TrainingArguments, request: dict[str, Any], file: Path) -> np.ndarray:
    """Generate audio for a request with the keys of `PROMPT_KEYS`, write it and return it, `[channels, samples]`."""
    prompts = {name: value for name, value in request.items() if name not in ("seed", "length")}
    audio = pipe(
        **prompts,
        audio_length_in_s=request.get("length"),
        generator=[torch.Generator().manual_seed(request["seed"])],
        num_inference_steps=args.validation_inference_steps,
        guidance_scale=args.validation_guidance_scale,
    ).audios[0]
    save_audio(file, np.clip(audio, -1, 1), pipe.vae.config.sampling_rate)
    return audio
