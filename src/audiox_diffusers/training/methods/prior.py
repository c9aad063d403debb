"""Prior preservation (arXiv 2208.12242, section 3.2): training on audio of the base model, so that it forgets less."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from accelerate import Accelerator
from tqdm.auto import tqdm

from ...atomic import replacing
from ...media import save_audio
from ...pipelines import AudioXPipeline
from ..data.batches import Batch
from ..data.seeds import generator_for
from ..data.sources import MixedDataset, open_dataset
from ..dataset_list import DatasetOptions
from ..strategy import DiffusionStrategy
from .lora_arguments import LoraArguments

METADATA = "metadata.jsonl"


class PriorPreservationStrategy(DiffusionStrategy):
    """
    Weight the loss of the samples of one dataset.

    Args:
        strategy: Unweighted loss.
        source: Number of the dataset.
        weight: Weight of its samples.
    """

    def __init__(self, strategy: DiffusionStrategy, source: int, weight: float):
        super().__init__(strategy.objective, strategy.timesteps, strategy.snr_gamma)
        self.source = source
        self.weight = weight

    def loss(self, model: nn.Module, batch: Batch, first_sample: int) -> torch.Tensor:
        """See [`DiffusionStrategy.loss`]."""
        weights = [self.weight if sample.key.source == self.source else 1.0 for sample in batch.samples]
        loss = super().loss(model, batch, first_sample)
        return loss * loss.new_tensor(weights)


def write_prior_data(args: LoraArguments, pipe: AudioXPipeline, accelerator: Accelerator) -> None:
    """
    Generate the files that `--class_data_dir` lacks, for the captions of `--class_prompt` in turn. Resumes an existing
    folder. The main process generates, the others wait.

    Raises:
        ValueError: Files are missing and there is no `--class_prompt`.
    """
    folder = args.class_data_dir
    rows = _read(folder / METADATA)
    if len(rows) < args.num_class_sounds and args.class_prompt is None:
        raise ValueError(
            f"--class_data_dir {folder} has {len(rows)} of --num_class_sounds {args.num_class_sounds} files; give"
            " captions for the others with --class_prompt"
        )
    if accelerator.is_main_process:
        _generate(args, pipe, accelerator, rows)
    accelerator.wait_for_everyone()


def open_prior_data(args: LoraArguments, weight: float) -> MixedDataset:
    """Open `--class_data_dir`. Options about `--dataset`, such as column names, do not apply to it."""
    options = DatasetOptions(path=str(args.class_data_dir), weight=weight)
    return open_dataset(options, args.cache_dir, "--class_data_dir")


def _read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


@torch.no_grad()
def _generate(args: LoraArguments, pipe: AudioXPipeline, accelerator: Accelerator, rows: list[dict[str, Any]]) -> None:
    folder = args.class_data_dir
    folder.mkdir(parents=True, exist_ok=True)
    device = pipe.transformer.device
    moved = [pipe.transformer, pipe.conditioner] if args.quantization is None else [pipe.conditioner]
    for model in moved:
        model.to(accelerator.device)
    pipe.set_progress_bar_config(leave=False, desc="prior")
    rate = pipe.vae.config.sampling_rate
    for number in tqdm(range(len(rows), args.num_class_sounds), desc="prior preservation", unit="file"):
        caption = args.class_prompt[number % len(args.class_prompt)]
        generator = [generator_for(args.seed, "class", number)]
        with accelerator.autocast():
            audio = pipe(caption, generator=generator, num_inference_steps=args.validation_inference_steps).audios[0]
        name = f"{number:05}.wav"
        save_audio(folder / name, np.clip(audio, -1, 1), rate)
        rows.append({"file_name": name, "caption": caption})
        with replacing(folder / METADATA) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for model in moved:
        model.to(device)
