"""Ending a run when it gets no better on clips that it is not trained on."""

import argparse
import math
from typing import Any

import torch
from diffusers.utils import logging

from ...pipelines import AudioXPipeline
from ..data.batches import BatchMaker, Sample
from ..data.encoding import NullEmbeddings, RecordEncoder
from ..data.masking import MaskingConfig
from ..data.records import BadRecord, RecordReader, WindowSpec
from ..data.sources import DatasetSource
from ..data.streaming import RowKey, read_shard
from ..parts import find_columns
from ..strategy import DiffusionStrategy
from .model import AudioXTrainingModel

logger = logging.get_logger(__name__)

# Clips that are used at most, and noises and times that each of them is measured with.
CLIPS, DRAWS = 16, 8


class EarlyStopping:
    """
    Measures the loss of held-out clips, always with the same noises and times and with nothing hidden, keeps the best
    weights, and tells when it is time to end.

    Args:
        samples: the clips, encoded, one for each draw.
        maker: makes batches of them.
        strategy: of the run, whose loss it is.
        batch_size: samples in a batch.
        patience: so many measurements in a row that are no better than the best end the run.
    """

    def __init__(
        self, samples: list[Sample], maker: BatchMaker, strategy: DiffusionStrategy, batch_size: int, patience: int
    ):
        self.samples = samples
        self.maker = maker
        self.strategy = strategy
        self.batch_size = batch_size
        self.patience = patience
        self.best, self.weights, self.waited = math.inf, None, 0

    @torch.no_grad()
    def measure(self, model: AudioXTrainingModel) -> float:
        """The mean loss of the held-out clips."""
        losses = []
        for first in range(0, len(self.samples), self.batch_size):
            batch = self.maker.make(self.samples[first : first + self.batch_size])
            losses.append(self.strategy.loss(model, batch, first).cpu())
        return torch.cat(losses).mean().item()

    def update(self, loss: float, parameters: list[torch.Tensor]) -> bool:
        """Keep the weights if the loss is the lowest so far; whether to end."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            self.weights = [parameter.detach().cpu().clone() for parameter in parameters]
        else:
            self.waited += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether it is time to end."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "weights": self.weights, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.weights, self.waited = state["best"], state["weights"], state["waited"]


def build_early_stopping(
    args: argparse.Namespace,
    pipe: AudioXPipeline,
    encoder: RecordEncoder,
    null_embeddings: NullEmbeddings,
    strategy: DiffusionStrategy,
    device: torch.device,
) -> EarlyStopping:
    """
    With the clips of `--held_out`, encoded.

    Raises:
        ValueError: there are none.
    """
    source = DatasetSource(args.held_out, cache_dir=args.cache_dir, option="--held_out")
    rates = dict.fromkeys(
        ("drop_text_rate", "drop_video_rate", "drop_audio_rate", "mask_text_rate", "mask_video_rate"), 0.0
    )
    masking = MaskingConfig(**rates, drop_context_rate=0.0)
    columns = find_columns(args, [source], "--held_out")
    reader = RecordReader(WindowSpec.of(pipe), [columns], masking, "start", args.min_seconds, args.seed)
    clips, reason = [], "it has no rows"
    for key, row in _rows(source):
        if len(clips) == CLIPS:
            logger.warning(f"--held_out {args.held_out}: only its first {CLIPS} clips are used")
            break
        try:
            record = reader.read(key, row)
        except BadRecord as error:
            reason = str(error)
            continue
        (encoded,) = encoder.encode([record])
        for name, tensor in encoded.tensors().items():
            setattr(encoded, name, tensor.cpu())
        clips.append(Sample(key, record.task_spec, encoded, record))
    if not clips:
        raise ValueError(f"--held_out {args.held_out} has no clip that can be used: {reason}")
    samples = [
        Sample(clip.key._replace(epoch=draw), clip.task_spec, clip.encoded, clip.record)
        for draw in range(DRAWS)
        for clip in clips
    ]
    size = (pipe.transformer.config.in_channels, pipe.transformer.config.sample_size)
    maker = BatchMaker(pipe.conditioner.config, size, null_embeddings, masking, args.seed, device)
    return EarlyStopping(samples, maker, strategy, args.train_batch_size, args.early_stopping_patience)


def _rows(source: DatasetSource):
    for shard in range(source.num_shards):
        for number, row in enumerate(read_shard(source, shard)):
            yield RowKey(0, 0, shard, number), row
