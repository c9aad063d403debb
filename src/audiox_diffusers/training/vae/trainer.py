"""Training loop of the VAE."""

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from ...atomic import filling
from ...mdct import initialize_with_mdct
from ...models import AudioXAutoencoderOobleck
from ..arguments import Arguments, Count, CountOrZero, NotNegative, Positive, RunArguments, parse
from ..lr_schedules import get_lr_scheduler
from ..run.checkpoints import config_of, open_checkpoint, save_checkpoint, write_run
from ..run.divergence import DivergenceGuard
from ..run.interruption import Interruption, stopped_at
from ..run.lock import locked
from ..run.log import LOG, SKIPPED, cut_log, write_report
from ..run.start import start
from ..run.state import RunState
from .loss import LONGEST_WINDOW, VaeLoss, spectral_loss
from .segments import HELD_OUT_SEGMENTS, draw_segments, hold_out, load_recordings

INITIAL_SCALE = -4.0  # of the posterior, before the softplus: little noise at first
DESCRIPTION = "Train the VAE of AudioX with a multi-resolution spectral loss and KL divergence."


@dataclass(kw_only=True)
class VaeOptions(Arguments):
    _argument_group_name = "VAE"

    vae_config: Path = HfArg(help="config.json of the VAE.")
    dataset: list[str] = HfArg(
        help="Datasets that `datasets.load_dataset` can stream, with a column audio or video. All audio is held in"
        " memory."
    )
    max_train_steps: Count = HfArg(help="Optimizer steps, including those before a resume.")
    segment_frames: Count = HfArg(default=32, help="Latent frames of a training segment.")
    kl_weight: NotNegative = HfArg(default=3e-5, help="Weight of the KL divergence in the loss.")
    l1_weight: NotNegative = HfArg(default=1.0, help="Weight of the waveform difference in the loss.")


@dataclass(kw_only=True)
class VaeArguments(VaeOptions, RunArguments):
    train_batch_size: Count = 8
    learning_rate: Positive = 5e-4
    lr_warmup_steps: CountOrZero = 200
    checkpoints_total_limit: Count | None = 2


def create_vae(path: Path) -> AudioXAutoencoderOobleck:
    """
    Build a VAE from a config file, initialized for training.

    Raises:
        ValueError: The file cannot be read, or its settings make no VAE.
    """
    try:
        config = {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key[0] != "_"}
        vae = AudioXAutoencoderOobleck(**config)
        initialize_with_mdct(vae)
    except Exception as error:  # the exception depends on the setting
        raise ValueError(f"--vae_config {path}: {error}") from error
    torch.nn.init.constant_(vae.encoder.conv2.bias[vae.config.decoder_input_channels :], INITIAL_SCALE)
    return vae


class VaeTrainer:
    """
    A training run of a VAE. Every process holds all recordings and the whole VAE.

    Subclasses may override `create_vae`, `build_loss`, `held_out_loss` and `export`.

    Args:
        args: Options, as parsed by [`parse_args`].

    Attributes:
        step (`int`): Number of optimizer steps taken.

    Raises:
        ValueError: An option is wrong. The message names it.
    """

    def __init__(self, args: VaeArguments):
        self.args = args
        self.step = 0
        self.stopped = False
        self.interruption = Interruption()
        self.accelerator = accelerator = Accelerator(mixed_precision=args.mixed_precision)
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("VAE training does not support FSDP and DeepSpeed")
        # Each process draws different noise. All start with the weights of the first.
        set_seed(args.seed, device_specific=True)
        self.vae = self.create_vae()
        self.length = args.segment_frames * self.vae.hop_length
        if self.length <= LONGEST_WINDOW // 2:
            raise ValueError(
                f"--segment_frames {args.segment_frames} are {self.length} samples of this VAE; the loss needs more than"
                f" {LONGEST_WINDOW // 2}"
            )
        skipped = self._load_recordings()
        with ExitStack() as stack:
            if accelerator.is_main_process:
                args.output_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(args.output_dir))
                if skipped:
                    (args.output_dir / SKIPPED).write_text("".join(f"{json.dumps(row)}\n" for row in skipped), "utf-8")
                    print(f"{len(skipped)} rows cannot be used, see {args.output_dir / SKIPPED}")
            self._prepare_model()
            self._resume()
            self._locked = stack.pop_all()

    def create_vae(self) -> AudioXAutoencoderOobleck:
        return create_vae(self.args.vae_config)

    def build_loss(self) -> torch.nn.Module:
        """Build a module that maps segments `[B, channels, samples]` to a dict of scalars with a `loss`."""
        return VaeLoss(self.vae, self.args.kl_weight, self.args.l1_weight)

    def held_out_loss(self, segments: torch.Tensor) -> torch.Tensor:
        """Compute the spectral loss of held-out segments, without sampling the posterior."""
        return spectral_loss(self.vae.decode(self.vae.encode(segments).latent_dist.mode()).sample, segments)

    def export(self, folder: Path) -> None:
        """Write the trained VAE."""
        self.vae.save_pretrained(folder / "vae")

    def _load_recordings(self) -> list[dict[str, Any]]:
        """Load the data and return the skipped rows."""
        config = self.vae.config
        recordings, skipped = load_recordings(self.args.dataset, config.sampling_rate, config.audio_channels)
        if len(recordings) < 2:
            raise ValueError("--dataset has only one usable recording; at least two are needed, one of them held out")
        self.recordings, self.held_out = hold_out(recordings)
        return skipped

    def _prepare_model(self) -> None:
        args = self.args
        model = self.build_loss()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.8, 0.99))
        # Not prepared: accelerate would step it once for each process.
        self.lr_scheduler = get_lr_scheduler(
            "cosine", optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.state = RunState(self.accelerator, self.model, self.optimizer, self.lr_scheduler)
        self.guard = DivergenceGuard(self.accelerator, args.output_dir)

    def train(self) -> None:
        """
        Train to the last step and save the VAE. SIGTERM stops the run after a checkpoint.

        Raises:
            DivergenceError: Loss, gradient or weights are not finite.
        """
        args, accelerator = self.args, self.accelerator
        progress = tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc="steps",
            disable=not accelerator.is_local_main_process,
        )
        with self._locked, self.interruption, progress:
            while self.step < args.max_train_steps and not self.stopped:
                started = time.perf_counter()
                report = self._train_step()
                progress.update()
                progress.set_postfix({name: f"{value:.4f}" for name, value in report.items()})
                self.step += 1
                last = self.step == args.max_train_steps
                due = last or self.step % args.checkpointing_steps == 0
                if due:
                    report["held_out"] = self._measure_held_out()
                report["seconds"] = time.perf_counter() - started
                self._report(report)
                self.guard.check_step(self.step, report["loss"], report["grad_norm"], last)
                if (due or self.stopped) and not self.guard.steps:
                    self.guard.check_weights(self.step, self.model.parameters())
                    save_checkpoint(
                        accelerator, args.output_dir, self.step, self._write_state, args.checkpoints_total_limit
                    )
            if self.stopped:
                accelerator.print(stopped_at(self.step))
            elif accelerator.is_main_process:
                with filling(args.output_dir) as folder:
                    self.export(folder)
            accelerator.wait_for_everyone()
        accelerator.end_training()

    def _train_step(self) -> dict[str, float]:
        """Take one optimizer step and return its report, averaged over the processes."""
        args, accelerator = self.args, self.accelerator
        segments = draw_segments(
            self.recordings, self.length, args.train_batch_size, args.seed, self.step, accelerator.process_index
        )
        report = self.model(segments.to(accelerator.device))
        accelerator.backward(report["loss"])
        norm = accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        finite = math.isfinite(norm)
        # A gradient scaler skips the step itself, and lowers its scale.
        if finite or accelerator.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        if finite and not self.optimizer.step_was_skipped:
            self.lr_scheduler.step()
        values = [value.detach() for value in report.values()]
        local = torch.tensor([*values, self.interruption.signalled], device=accelerator.device)
        every = accelerator.gather(local[None])
        # All processes stop at the same step, even if only one of them got the signal.
        self.stopped = bool(every[:, -1].any())
        return {**dict(zip(report, every.mean(dim=0).tolist())), "lr": learning_rate, "grad_norm": float(norm)}

    @torch.no_grad()
    def _measure_held_out(self) -> float:
        """Measure the loss of held-out segments, the same every time."""
        segments = draw_segments(self.held_out, self.length, HELD_OUT_SEGMENTS, self.args.seed, -1)
        return self.held_out_loss(segments.to(self.accelerator.device)).item()

    def _report(self, report: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            write_report(self.args.output_dir, self.step, report)

    def _write_state(self, folder: Path) -> None:
        """Write everything that an exact resume needs. Segments depend only on the step."""
        self.state.save(folder)
        if self.accelerator.is_main_process:
            write_run(folder, self.step, self.args, {"vae": config_of(self.vae)}, self.accelerator)

    def _resume(self) -> None:
        args, accelerator = self.args, self.accelerator
        folder, step = open_checkpoint(args, {"vae": config_of(self.vae)}, accelerator)
        if accelerator.is_main_process:
            cut_log(args.output_dir / LOG, step)
        if folder is None:
            return
        self.state.load(folder)
        self.step = step
        accelerator.print(f"resumed from {folder} at step {step}")


def parse_args(argv: Sequence[str] | None = None) -> VaeArguments:
    """Parse the options of `training/train_vae.py`. An error is printed as argparse prints its own."""
    return parse(VaeArguments, DESCRIPTION, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `training/train_vae.py`. Errors in options, and divergence, end the process with one line."""
    args = parse_args(argv)
    start(lambda: VaeTrainer(args))
