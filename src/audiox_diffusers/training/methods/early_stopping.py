"""Early stopping on held-out clips."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import logging

from ...pipelines import AudioXPipeline
from ..arguments import MaskingConfig, MaskingRates
from ..data.bad_records import BadRecord
from ..data.batches import BatchMaker, Sample
from ..data.encoding import NullEmbeddings, RecordEncoder
from ..data.records import RecordReader
from ..data.sources import open_dataset
from ..data.streaming import RowKey, RowSource, read_shard
from ..data.windows import WindowSpec
from ..dataset_list import DatasetOptions
from ..run.state_files import check_count, check_like
from ..strategy import DiffusionStrategy
from .model import AudioXTrainingModel

if TYPE_CHECKING:
    from .full import FullArguments
    from .lora_arguments import LoraArguments

logger = logging.get_logger(__name__)

# Most clips to use, and draws of noise and timestep for each clip.
CLIPS, DRAWS = 16, 8
# Name of the loss in reports, and parts of the timesteps 0..1 that have a loss of their own.
HELD_OUT_LOSS, PARTS = "held_out_loss", 4


class EarlyStopping:
    """
    Measure the loss of held-out clips without masking, keep the best weights, and stop when the loss no longer falls.

    Noise and timesteps are the same in every measurement.

    Args:
        samples: Encoded clips, one sample for each draw.
        maker: Makes batches of them.
        strategy: Loss of the run.
        batch_size: Samples in a batch.
        patience: Number of measurements in a row without improvement that stop the run.
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
        self.parts = (strategy.timesteps.sample(0, len(samples)) * PARTS).long()

    @torch.no_grad()
    def measure(self, model: AudioXTrainingModel) -> dict[str, float]:
        """
        Measure the mean loss of the held-out clips.

        Returns:
            The mean over all draws as `held_out_loss`, and over each quarter of the timesteps with draws in it as
            `held_out_loss/0-0.25` to `held_out_loss/0.75-1`. Timestep 0 is clean data and 1 is noise.
        """
        losses = []
        for first in range(0, len(self.samples), self.batch_size):
            batch = self.maker.make(self.samples[first : first + self.batch_size])
            losses.append(self.strategy.loss(model, batch, first).cpu())
        loss = torch.cat(losses)
        by_part = {part: loss[self.parts == part].mean().item() for part in self.parts.unique().tolist()}
        return {HELD_OUT_LOSS: loss.mean().item(), **{_name(part): mean for part, mean in by_part.items()}}

    def update(self, loss: float, parameters: list[torch.Tensor]) -> bool:
        """Keep the weights if the loss is the lowest so far. Returns whether to stop."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            self.weights = [parameter.detach().cpu().clone() for parameter in parameters]
        else:
            self.waited += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the patience has run out."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "weights": self.weights, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """
        Restore what `state_dict` returned.

        Raises:
            ValueError: The state has another structure, or the weights are not those of `parameters`.
        """
        weights = None if state["weights"] is None else parameters
        check_like(state, {"best": math.inf, "weights": weights, "waited": 0}, "early stopping")
        self.best, self.weights = state["best"], state["weights"]
        self.waited = check_count(state["waited"], "waited")


def _name(part: int) -> str:
    return f"{HELD_OUT_LOSS}/{part / PARTS:g}-{(part + 1) / PARTS:g}"


def build_early_stopping(
    args: "FullArguments | LoraArguments",
    pipe: AudioXPipeline,
    encoder: RecordEncoder,
    null_embeddings: NullEmbeddings,
    strategy: DiffusionStrategy,
    device: torch.device,
) -> EarlyStopping:
    """
    Encode the clips of `--held_out` and build early stopping on them.

    Raises:
        ValueError: There is no usable clip.
    """
    options = DatasetOptions(path=args.held_out, columns=args.datasets()[0].columns)
    dataset = open_dataset(options, args.cache_dir, "--held_out")
    masking = MaskingConfig(**{name: 0.0 for name in vars(MaskingRates()) if not name.startswith("audio_mask")})
    reader = RecordReader(
        WindowSpec.of(pipe),
        [dataset.columns],
        masking,
        "start",
        args.min_seconds,
        args.seed,
        keep_silence=args.keep_silence,
    )
    clips, reason = [], "it has no rows"
    for key, row in _rows(dataset.source):
        if len(clips) == CLIPS:
            logger.warning(f"--held_out {args.held_out}: only the first {CLIPS} clips are used")
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
        raise ValueError(f"--held_out {args.held_out} has no usable clip: {reason}")
    samples = [
        Sample(clip.key._replace(epoch=draw), clip.task_spec, clip.encoded, clip.record)
        for draw in range(DRAWS)
        for clip in clips
    ]
    size = (pipe.transformer.config.in_channels, pipe.transformer.config.sample_size)
    maker = BatchMaker(pipe.conditioner.config, size, null_embeddings, masking, args.seed, device)
    return EarlyStopping(samples, maker, strategy, args.train_batch_size, args.early_stopping_patience)


def _rows(source: RowSource) -> Iterator[tuple[RowKey, Any]]:
    for shard in range(source.num_shards):
        for number, row in enumerate(read_shard(source, shard)):
            yield RowKey(0, 0, shard, number), row
