"""The training of a VAE on sounds: what `training/train_vae.py` runs."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from ..filter_bank import start_from_filter_bank
from ..media import MediaError, load_audio
from ..models import AudioXAutoencoderOobleck
from .checkpoints import find_checkpoint, save_checkpoint
from .lr_schedules import get_lr_scheduler
from .seeds import generator_for
from .sources import DatasetSource
from .spectral_loss import spectral_loss

LOG = "log.jsonl"
FIRST_SCALE = -4.0  # of the posterior, before the softplus: a little noise to begin with
HELD_OUT = 10  # of so many sounds the first one is not trained on, but measured


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
    """The arguments of the script."""
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
    parser.add_argument("--train_batch_size", type=int, default=8)
    parser.add_argument("--max_train_steps", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="at its peak; it falls to 0 as a cosine")
    parser.add_argument("--lr_warmup_steps", type=int, default=200)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--kl_weight", type=float, default=3e-5)
    parser.add_argument("--l1_weight", type=float, default=1.0)
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="by default as accelerate is set up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--checkpoints_total_limit", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", help="name of a checkpoint, or latest")
    return parser


def load_sounds(names: list[str], sampling_rate: int, channels: int) -> list[torch.Tensor]:
    """
    All sounds of some datasets, decoded: `[channels, samples]`. Those that cannot be read or are silent are left out.

    Raises:
        ValueError: a dataset cannot be opened, or has no sounds.
    """
    sounds = []
    for name in names:
        source, before = DatasetSource(name), len(sounds)
        column = next((column for column in ("audio", "video") if column in source.columns), None)
        if column is None:
            raise ValueError(f"--dataset {name} has neither a column audio nor a column video")
        for shard in range(source.num_shards):
            for row in source.rows(shard):
                stored = row[column]
                try:
                    sound, _ = load_audio(stored["bytes"] or stored["path"], sampling_rate, channels)
                except MediaError:
                    continue
                if sound.abs().max() > 0:
                    sounds.append(sound.half())
        if len(sounds) == before:
            raise ValueError(f"--dataset {name} has no sounds that can be used")
    return sounds


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


def train(args: argparse.Namespace) -> None:
    """Train, and write the VAE to `output_dir` in the end."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    vae = AudioXAutoencoderOobleck.from_config(AudioXAutoencoderOobleck.load_config(args.vae_config))
    start_from_filter_bank(vae)
    torch.nn.init.constant_(vae.encoder.conv2.bias[vae.config.decoder_input_channels :], FIRST_SCALE)
    sounds = load_sounds(args.dataset, vae.config.sampling_rate, vae.config.audio_channels)
    if len(sounds) < 2:
        raise ValueError("--dataset has one sound that can be used: at least two are needed, one to be held out")
    held_out = sounds[::HELD_OUT]
    sounds = [sound for index, sound in enumerate(sounds) if index % HELD_OUT]
    length = args.segment_frames * vae.hop_length

    model = SegmentLoss(vae, args.kl_weight, args.l1_weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.8, 0.99))
    scheduler = get_lr_scheduler(
        "cosine", optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    step = 0
    if args.resume_from_checkpoint and (path := find_checkpoint(args.output_dir, args.resume_from_checkpoint)):
        accelerator.load_state(path)
        step = int(path.name.removeprefix("checkpoint-"))

    args.output_dir.mkdir(parents=True, exist_ok=True)
    progress = tqdm(total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process)
    while step < args.max_train_steps:
        started = time.perf_counter()
        rank = accelerator.process_index
        batch = draw_segments(sounds, length, args.train_batch_size, args.seed, step, rank).to(accelerator.device)
        report = model(batch)
        accelerator.backward(report["loss"])
        report["grad_norm"] = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        step += 1
        report = {name: float(value.detach()) for name, value in report.items()}
        last = step == args.max_train_steps
        if last or step % args.checkpointing_steps == 0:
            with torch.no_grad():
                segments = draw_segments(held_out, length, 64, args.seed, -1).to(accelerator.device)
                report["held_out"] = float(
                    spectral_loss(vae.decode(vae.encode(segments).latent_dist.mode()).sample, segments)
                )
            save_checkpoint(accelerator, args.output_dir, step, accelerator.save_state, args.checkpoints_total_limit)
        progress.update()
        progress.set_postfix({name: f"{value:.4f}" for name, value in report.items()})
        if accelerator.is_main_process:
            with (args.output_dir / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **report, "seconds": time.perf_counter() - started}) + "\n")
    progress.close()
    if accelerator.is_main_process:
        vae.save_pretrained(args.output_dir / "vae")
    accelerator.end_training()


def main(argv: list[str] | None = None) -> None:
    """What is wrong is told in a line."""
    try:
        train(build_parser().parse_args(argv))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
