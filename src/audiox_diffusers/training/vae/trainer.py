"""The training of a VAE on sounds: what `training/train_vae.py` runs."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from tqdm.auto import tqdm

from ...mdct import initialize_with_mdct
from ...media import MediaError, load_audio
from ...models import AudioXAutoencoderOobleck
from ..arguments import check_above_0, check_at_least, check_folder, check_not_negative, check_seed
from ..checkpoints import open_checkpoint, save_checkpoint, write_run
from ..data.records import BadRecord, stored_media
from ..data.seeds import generator_for
from ..data.sources import DatasetSource
from ..data.streaming import Row, Unreadable, read_shard
from ..export import staged
from ..interruption import Interruption, stopped_at
from ..log import LOG, SKIPPED, cut_log, write_report
from ..lr_schedules import get_lr_scheduler
from ..parts import config_of
from .loss import LONGEST_WINDOW, spectral_loss

FIRST_SCALE = -4.0  # of the posterior, before the softplus: a little noise to begin with
HELD_OUT = 10  # of so many sounds the first one is not trained on, but measured
HELD_OUT_SEGMENTS = 64


class SegmentLoss(torch.nn.Module):
    """
    Encode, sample, decode and compare.

    Args:
        vae: to be trained.
        kl_weight: of the Kullback-Leibler divergence of the posterior from a standard normal distribution, as
            diffusers' `OobleckDiagonalGaussianDistribution.kl` gives it.
        l1_weight: of the mean absolute difference of the waveforms.
    """

    def __init__(self, vae: AudioXAutoencoderOobleck, kl_weight: float, l1_weight: float):
        super().__init__()
        self.vae = vae
        self.kl_weight = kl_weight
        self.l1_weight = l1_weight

    def forward(self, sound: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            sound (`torch.Tensor` of shape `[B, channels, samples]`): a multiple of the VAE's hop long.

        Returns:
            Scalars: `loss`, and what it is made of: `spectral`, `l1` and `kl`.
        """
        posterior = self.vae.encode(sound).latent_dist
        reconstruction = self.vae.decode(posterior.sample()).sample.float()
        report = {
            "spectral": spectral_loss(reconstruction, sound),
            "l1": F.l1_loss(reconstruction, sound),
            "kl": posterior.kl(),
        }
        loss = report["spectral"] + self.l1_weight * report["l1"] + self.kl_weight * report["kl"]
        return {"loss": loss, **report}


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the script. Those that the other scripts have are called as there."""
    parser = argparse.ArgumentParser(
        description="Train the VAE of AudioX on sounds, by multi-resolution spectral loss and KL divergence.",
        allow_abbrev=False,
    )
    parser.add_argument("--vae_config", type=Path, required=True, help="config.json of the VAE to make")
    parser.add_argument(
        "--dataset",
        nargs="+",
        required=True,
        help="what `datasets.load_dataset` streams, with a column audio or video",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="where the checkpoints and the VAE go")
    parser.add_argument("--segment_frames", type=int, default=32, help="latent frames of a training sample")
    parser.add_argument("--train_batch_size", type=int, default=8, help="samples of a device in a step")
    parser.add_argument("--max_train_steps", type=int, required=True, help="those before a resume too")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="at its peak; it falls to 0 as a cosine")
    parser.add_argument("--lr_warmup_steps", type=int, default=200)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--kl_weight", type=float, default=3e-5, help="of the KL divergence in the loss")
    parser.add_argument("--l1_weight", type=float, default=1.0, help="of the waveforms' difference in the loss")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="by default as accelerate is set up")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--checkpoints_total_limit", type=int, default=2, help="keep so many, the newest")
    parser.add_argument("--resume_from_checkpoint", help="latest, or the name of a checkpoint in the output folder")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check; what is wrong is reported as argparse does, naming the argument."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check(args: argparse.Namespace) -> None:
    """Raise `ValueError` naming the argument that is out of range."""
    for name in (
        "segment_frames",
        "train_batch_size",
        "max_train_steps",
        "checkpointing_steps",
        "checkpoints_total_limit",
    ):
        check_at_least(args, name, 1)
    check_at_least(args, "lr_warmup_steps", 0)
    for name in ("learning_rate", "max_grad_norm"):
        check_above_0(args, name)
    for name in ("kl_weight", "l1_weight"):
        check_not_negative(args, name)
    check_seed(args)
    check_folder(args, "output_dir")


def create_vae(path: Path) -> AudioXAutoencoderOobleck:
    """
    The VAE of a config file, with the weights that training begins with.

    Raises:
        ValueError: the file cannot be read, holds what is no setting of the VAE, or one that makes none.
    """
    try:
        config = {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key[0] != "_"}
        vae = AudioXAutoencoderOobleck(**config)
        initialize_with_mdct(vae)
    except Exception as error:  # what is raised depends on the setting
        raise ValueError(f"--vae_config {path}: {error}") from error
    torch.nn.init.constant_(vae.encoder.conv2.bias[vae.config.decoder_input_channels :], FIRST_SCALE)
    return vae


def load_sounds(
    names: Sequence[str], sampling_rate: int, channels: int
) -> tuple[list[torch.Tensor], list[dict[str, str | int]]]:
    """
    All sounds of some datasets, decoded, in half precision: what trains a small VAE fits into memory.

    Args:
        names: of the datasets. Of a row that has no `audio` the sound track of its `video` is taken.
        sampling_rate, channels: of the sounds.

    Returns:
        The sounds, `[channels, samples]`, in order, and of each row that was left out as silent or not readable
        `dataset`, `shard`, `row` and `reason`.

    Raises:
        ValueError: a dataset cannot be opened, or has no sounds.
    """
    sounds, skipped = [], []
    for name in names:
        source, before = DatasetSource(name), len(sounds)
        if not {"audio", "video"} & set(source.columns):
            columns = ", ".join(source.columns)
            raise ValueError(f"--dataset {name} has neither a column audio nor a column video, but {columns}")
        for shard in range(source.num_shards):
            for number, row in enumerate(read_shard(source, shard)):
                try:
                    sounds.append(read_sound(row, sampling_rate, channels))
                except (BadRecord, MediaError, OSError) as error:
                    skipped.append({"dataset": name, "shard": shard, "row": number, "reason": str(error)})
        if len(sounds) == before:
            raise ValueError(f"--dataset {name} has no sounds that can be used; the last one: {skipped[-1]['reason']}")
    return sounds, skipped


def read_sound(row: Row, sampling_rate: int, channels: int) -> torch.Tensor:
    """`[channels, samples]`, float16; `BadRecord`, `MediaError` or `OSError` where there is none."""
    if isinstance(row, Unreadable):
        raise BadRecord(row.reason)
    media = stored_media(row.get("audio"), "audio") or stored_media(row.get("video"), "video")
    if media is None:
        raise BadRecord("has neither audio nor video")
    sound, _ = load_audio(media, sampling_rate, channels)
    if not torch.isfinite(sound).all():
        raise BadRecord("holds NaN or infinite samples")
    if not sound.any():
        raise BadRecord("is silent")
    return sound.half()


def hold_out(sounds: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The sounds to train on, and those that are only measured."""
    return [sound for index, sound in enumerate(sounds) if index % HELD_OUT], sounds[::HELD_OUT]


def draw_segments(sounds: list[torch.Tensor], length: int, count: int, *seeds: int) -> torch.Tensor:
    """`[count, channels, length]`: pieces of sounds from anywhere, silence after their end, at levels of -12 to 0 dB."""
    generator = generator_for(*seeds)
    segments = torch.zeros(count, sounds[0].shape[0], length)
    for segment in segments:
        sound = sounds[int(torch.randint(len(sounds), (), generator=generator))]
        start = int(torch.randint(max(1, sound.shape[1] - length + 1), (), generator=generator))
        piece = sound[:, start : start + length]
        gain = 10 ** (-12 * float(torch.rand((), generator=generator)) / 20)
        segment[:, : piece.shape[1]] = gain * piece.float()
    return segments


class VaeTrainer:
    """
    A training run. Every process holds all sounds and the whole VAE.

    Args:
        args: of [`parse_args`].

    Attributes:
        step (`int`): optimizer steps taken.

    Raises:
        ValueError: naming the argument that is wrong.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.step = 0
        self.stopped = False
        self.interruption = Interruption()
        self.accelerator = accelerator = Accelerator(mixed_precision=args.mixed_precision)
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("a VAE is trained with whole weights: launch it without FSDP and DeepSpeed")
        # Each process draws other noise of the posteriors. All begin with the weights of the first.
        set_seed(args.seed, device_specific=True)
        self.vae = create_vae(args.vae_config)
        self.length = args.segment_frames * self.vae.hop_length
        if self.length <= LONGEST_WINDOW // 2:
            raise ValueError(
                f"--segment_frames {args.segment_frames} are {self.length} samples of this VAE; the loss needs more than"
                f" {LONGEST_WINDOW // 2}"
            )
        self._prepare_data()
        self._prepare_model()
        self._resume()

    def _prepare_data(self) -> None:
        args, config = self.args, self.vae.config
        sounds, skipped = load_sounds(args.dataset, config.sampling_rate, config.audio_channels)
        if len(sounds) < 2:
            raise ValueError("--dataset has one sound that can be used: at least two are needed, one to be held out")
        self.sounds, self.held_out = hold_out(sounds)
        if self.accelerator.is_main_process:
            args.output_dir.mkdir(parents=True, exist_ok=True)
            if skipped:
                lines = "".join(f"{json.dumps(row)}\n" for row in skipped)
                (args.output_dir / SKIPPED).write_text(lines, encoding="utf-8")
                print(f"{len(skipped)} rows cannot be used: {args.output_dir / SKIPPED} says why")

    def _prepare_model(self) -> None:
        args = self.args
        model = SegmentLoss(self.vae, args.kl_weight, args.l1_weight)
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.8, 0.99))
        # Not prepared: accelerate would take a step of it for each process.
        self.lr_scheduler = get_lr_scheduler(
            "cosine", optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.accelerator.register_for_checkpointing(self.lr_scheduler)

    def train(self) -> None:
        """Train to the last step, or until SIGTERM; then save the VAE."""
        args, accelerator = self.args, self.accelerator
        progress = tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc="steps",
            disable=not accelerator.is_local_main_process,
        )
        with self.interruption, progress:
            while self.step < args.max_train_steps and not self.stopped:
                started = time.perf_counter()
                report = self._train_step()
                self.step += 1
                due = self.step == args.max_train_steps or self.step % args.checkpointing_steps == 0
                if due:
                    report["held_out"] = self._measure_held_out()
                report["seconds"] = time.perf_counter() - started
                self._report(report, progress)
                if due or self.stopped:
                    save_checkpoint(
                        accelerator, args.output_dir, self.step, self._write_state, args.checkpoints_total_limit
                    )
        if self.stopped:
            accelerator.print(stopped_at(self.step))
        elif accelerator.is_main_process:
            with staged(args.output_dir) as folder:
                self.vae.save_pretrained(folder / "vae")
        accelerator.wait_for_everyone()
        accelerator.end_training()

    def _train_step(self) -> dict[str, float]:
        """One step of the optimizer; what is to be reported of it, as a mean over the processes."""
        args, accelerator = self.args, self.accelerator
        segments = draw_segments(
            self.sounds, self.length, args.train_batch_size, args.seed, self.step, accelerator.process_index
        )
        report = self.model(segments.to(accelerator.device))
        accelerator.backward(report["loss"])
        norm = accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        if not self.optimizer.step_was_skipped:
            self.lr_scheduler.step()
        values = [value.detach() for value in report.values()]
        local = torch.tensor([*values, self.interruption.signalled], device=accelerator.device)
        every = accelerator.gather(local[None])
        # All processes stop at the same step, though the signal may come to one of them.
        self.stopped = bool(every[:, -1].any())
        return {**dict(zip(report, every.mean(dim=0).tolist())), "lr": learning_rate, "grad_norm": float(norm)}

    @torch.no_grad()
    def _measure_held_out(self) -> float:
        """The spectral loss of sounds that are not trained on, the same segments every time, without noise."""
        segments = draw_segments(self.held_out, self.length, HELD_OUT_SEGMENTS, self.args.seed, -1)
        segments = segments.to(self.accelerator.device)
        return spectral_loss(self.vae.decode(self.vae.encode(segments).latent_dist.mode()).sample, segments).item()

    def _report(self, report: dict[str, float], progress: tqdm) -> None:
        progress.update()
        progress.set_postfix({name: f"{report[name]:.4f}" for name in ("loss", "spectral", "l1", "kl")})
        if self.accelerator.is_main_process:
            write_report(self.args.output_dir, self.step, report)

    def _write_state(self, folder: Path) -> None:
        """Everything that an exact resume needs: segments depend on the step alone."""
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            write_run(folder, self.step, self.args, {"vae": config_of(self.vae)}, self.accelerator)

    def _resume(self) -> None:
        args, accelerator = self.args, self.accelerator
        folder, step = open_checkpoint(args, {"vae": config_of(self.vae)}, accelerator)
        if accelerator.is_main_process:
            cut_log(args.output_dir / LOG, step)
        if folder is None:
            return
        accelerator.load_state(str(folder))
        self.step = step
        accelerator.print(f"resumed from {folder} at step {step}")


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the arguments say. What is wrong with them, or with what they name, is told in a line."""
    args = parse_args(argv)
    try:
        trainer = VaeTrainer(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    trainer.train()
