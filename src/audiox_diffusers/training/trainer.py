"""Training loop of the transformer: batches, steps, checkpoints and reports."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    broadcast_object_list,
    set_seed,
)
from diffusers.training_utils import EMAModel
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from ..messages import first_line
from .arguments import TrainingArguments, as_json
from .config_file import write_config
from .data.batches import Batch, BatchMaker, Sample
from .data.cache_settings import cache_settings
from .data.cache_size import describe_size
from .data.encoding import ENCODERS, RecordEncoder
from .data.first_look import FirstLook, check_look, look
from .data.latent_cache import LatentCache
from .data.loading import LoadedBatch, RecordBatches, load_batches
from .data.records import RecordReader
from .data.sources import MixedDataset
from .data.windows import WindowSpec
from .export import check_repository
from .lr_schedules import get_lr_scheduler
from .methods.activations import OffloadedActivations
from .methods.early_stopping import HELD_OUT_LOSS
from .methods.full import FullTraining
from .optimizers import WHOLE_WEIGHTS, build_optimizer
from .precision import half_dtype
from .run.checkpoints import config_of, open_checkpoint, save_checkpoint, write_run
from .run.data_position import DATA, read_position, write_position
from .run.divergence import DivergenceGuard
from .run.interruption import Interruption, stopped_at
from .run.length import steps_of_epochs
from .run.lock import locked
from .run.log import LOG, SKIPPED, cut_log, warned, write_report
from .run.optimizer_state import local
from .run.power_ema import POST_HOC_EMA, PowerFunctionAverages
from .run.preflight import check_backend, check_processes
from .run.state import RunState
from .run.state_files import check_like, json_file, read_state, reading, write_state
from .validation import Validation

EMA, EMA_SHARD, EARLY_STOPPING, STRATEGY = "ema", "ema-{}", "early-stopping", "strategy"


class Trainer:
    """
    A training run.

    Args:
        args: Options, as parsed by [`parse_args`].
        method: Training method: which weights are trained, and what is exported.

    Attributes:
        step (`int`): Number of optimizer steps taken.

    Raises:
        ValueError: An option is wrong. The message names it.
    """

    def __init__(self, args: TrainingArguments, method: type[FullTraining] = FullTraining):
        self.args = args
        self.method = method(args)
        self.step = 0
        self.skipped = 0
        self.interruption = Interruption()
        self.stopped = self.finished = False
        self.accelerator = build_accelerator(args, self.method)
        check_processes(self.accelerator)
        self.sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.sharded and args.validation_prompts is not None:
            raise ValueError("--validation_prompts needs whole weights; leave it out with FSDP and DeepSpeed")
        self.method.check_devices(self.accelerator)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED and args.use_ema:
            raise ValueError("--use_ema would average half-precision weights with DeepSpeed; leave it out or use FSDP")
        for name in ("post_hoc_ema", "activation_offloading"):
            if self.sharded and getattr(args, name):
                raise ValueError(f"--{name} needs whole weights; leave it out with FSDP and DeepSpeed")
        if self.sharded and args.optimizer in WHOLE_WEIGHTS:
            raise ValueError(f"--optimizer {args.optimizer} needs whole weights; use another with FSDP and DeepSpeed")
        with ExitStack() as stack:
            if self.accelerator.is_main_process:
                args.output_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(args.output_dir))
                write_config(args.output_dir, as_json(args))
                if args.push_to_hub:
                    check_repository(args)
            check_backend(self.accelerator)
            self.validation = None if args.validation_prompts is None else Validation(args)
            self.pipe = self.method.load_pipeline(half_dtype(self.accelerator) or torch.float32)
            self._prepare_data()
            self._prepare_model()
            self._resume()
            self._start_trackers()
            self._locked = stack.pop_all()

    def _prepare_data(self) -> None:
        args, accelerator, pipe = self.args, self.accelerator, self.pipe
        self._move_encoders(accelerator.device)
        self.method.prepare_data(pipe, accelerator)
        datasets = self.method.open_datasets()
        sources = [dataset.source for dataset in datasets]
        columns = [dataset.columns for dataset in datasets]
        looks = self._look_at(datasets)
        self.max_steps = self._count_steps(looks)
        tasks = [dataset.options.tasks for dataset in datasets]
        reader = RecordReader(
            WindowSpec.of(pipe),
            columns,
            args.masking(),
            args.crop,
            args.min_seconds,
            args.seed,
            tasks,
            args.keep_silence,
        )
        self.encoder = RecordEncoder(pipe, accelerator.device, args.video_prompt, self.method.encoders)
        null_embeddings = self.encoder.null_embeddings()
        if args.cache_latents is not None:
            settings = {**cache_settings(args, pipe, datasets), **self.method.cache_settings()}
            cache = LatentCache(args.cache_latents, settings, sources, reader, self.encoder)
            if not cache.complete:
                accelerator.print(describe_size(args.cache_latents, looks, pipe))
                cache.build(args.dataloader_num_workers, accelerator)
            sources, reader = cache.read()
        self.strategy = self.method.build_strategy(pipe, accelerator)
        self.early_stopping = self.method.build_early_stopping(
            pipe, self.encoder, null_embeddings, self.strategy, accelerator.device
        )
        if args.cache_latents is not None:
            self._move_encoders(torch.device("cpu"))
        self.maker = BatchMaker(
            pipe.conditioner.config,
            (pipe.transformer.config.in_channels, pipe.transformer.config.sample_size),
            null_embeddings,
            args.masking(),
            args.seed,
            accelerator.device,
        )
        self.records = RecordBatches(
            sources,
            [dataset.weight for dataset in datasets],
            reader,
            args.train_batch_size,
            args.seed,
            args.shuffle_buffer_size,
            accelerator.process_index,
            accelerator.num_processes,
            args.max_bad_records,
        )

    def _look_at(self, datasets: list[MixedDataset]) -> list[FirstLook]:
        """Print what the datasets hold. Raise `ValueError` if that is not what the tasks need."""
        looks = [look(dataset, self.args.min_seconds) for dataset in datasets]
        for dataset, found in zip(datasets, looks, strict=True):
            self.accelerator.print(found.table())
            check_look(found, dataset.options.tasks or self.args.masking().task_weights)
        return looks

    def _count_steps(self, looks: list[FirstLook]) -> int:
        args = self.args
        if args.max_train_steps is not None:
            return args.max_train_steps
        steps = steps_of_epochs(args.num_train_epochs, looks, len(args.dataset), self._samples_of_step())
        self.accelerator.print(f"--num_train_epochs {args.num_train_epochs}: {steps} steps")
        return steps

    def _samples_of_step(self) -> int:
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    def _move_encoders(self, device: torch.device) -> None:
        for name in ENCODERS:
            if getattr(self.pipe, name) is not None:
                getattr(self.pipe, name).to(device)

    @contextmanager
    def _encoders_on_device(self) -> Iterator[None]:
        """Move the encoders to the device to generate audio. With cached data they are on the CPU otherwise."""
        self._move_encoders(self.accelerator.device)
        yield
        if self.args.cache_latents is not None:
            self._move_encoders(torch.device("cpu"))

    def _prepare_model(self) -> None:
        args, accelerator = self.args, self.accelerator
        self.method.prepare_model(self.pipe)
        model = self.method.build_model(self.encoder, half_dtype(accelerator))
        if accelerator.is_fsdp2:
            # FSDP2 cannot shard parameters without dimensions, such as the gates of the fusion. [1] computes the same.
            for parameter in model.parameters():
                if parameter.dim() == 0:
                    parameter.data = parameter.data[None]
        optimizer = build_optimizer(args, model, accelerator.num_processes)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.strategy.prepare(accelerator)
        # Not prepared: accelerate would step it once for each process.
        self.lr_scheduler = get_lr_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=self.max_steps,
            num_cycles=args.lr_num_cycles,
            power=args.lr_power,
            inv_gamma=args.lr_inv_gamma,
            warmup_decay=args.lr_warmup_decay,
        )
        self.state = RunState(accelerator, self.model, self.optimizer, self.lr_scheduler)
        self.guard = DivergenceGuard(accelerator, args.output_dir)
        self.ema = EMAModel(self._averaged_parameters(), decay=args.ema_decay) if args.use_ema else None
        self.post_hoc_ema = PowerFunctionAverages(self._averaged_parameters()) if args.post_hoc_ema else None
        self.offloading = OffloadedActivations(self.model) if args.activation_offloading else nullcontext()

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _local_parameters(self) -> list[torch.Tensor]:
        """Return this process's part of the trained parameters. They share memory with the parameters."""
        return [local(parameter) for parameter in self._trained_parameters()]

    def _averaged_parameters(self) -> list[torch.Tensor]:
        """Return this process's part of the trained parameters on the device of the averages."""
        parameters = self._local_parameters()
        if self.args.ema_device == "cpu":
            # `EMAModel` averages only what requires gradients.
            parameters = [tensor.detach().cpu().requires_grad_(tensor.requires_grad) for tensor in parameters]
        return parameters

    # Loop

    def train(self) -> None:
        """
        Train to the last step and save the model. SIGTERM stops the run after a checkpoint.

        Raises:
            DivergenceError: Loss, gradient or weights are not finite.
        """
        accelerator = self.accelerator
        with self._locked:
            with self.interruption:
                self._take_steps()
            if self.stopped:
                accelerator.print(stopped_at(self.step))
            else:
                if self.finished:
                    accelerator.print(f"stopped at step {self.step}: the held-out loss no longer falls")
                self._save_model()
            with warned("the tracker could not be closed"):
                accelerator.end_training()

    def _take_steps(self) -> None:
        args, accelerator = self.args, self.accelerator
        batches = load_batches(self.records, args.dataloader_num_workers)
        self.model.train()
        self.optimizer.train()
        with tqdm(
            total=self.max_steps,
            initial=self.step,
            desc="steps",
            disable=not accelerator.is_local_main_process,
        ) as progress:
            while self.step < self.max_steps and not self.stopped and not self.finished:
                started = time.perf_counter()
                report = self._train_step(batches)
                self.step += 1
                seconds = time.perf_counter() - started
                report["samples_per_second"] = self._samples_of_step() / seconds
                due = self.step == self.max_steps or self.step % args.validation_steps == 0
                if self.early_stopping is not None and due:
                    report |= self._measure_held_out()
                self._report(report, progress)
                last = self.step == self.max_steps or self.finished
                self.guard.check_step(self.step, report["loss"], report.get("grad_norm"), last)
                due = last or self.stopped or self.step % args.checkpointing_steps == 0
                if due and not self.guard.steps:
                    self.guard.check_weights(self.step, self._kept_weights())
                    save_checkpoint(
                        accelerator, args.output_dir, self.step, self._write_state, args.checkpoints_total_limit
                    )
                if self.validation is not None and (last or self.step % args.validation_steps == 0):
                    self._validate()

    def _train_step(self, batches: Iterator[LoadedBatch]) -> dict[str, float]:
        """Take one optimizer step and return its report."""
        args, accelerator = self.args, self.accelerator
        total, report, finite = torch.zeros((), device=accelerator.device), {}, True
        self.strategy.before_step(self.model, lambda: self._next_batch(batches))
        for _ in range(args.gradient_accumulation_steps):
            batch, first_sample = self._next_batch(batches)
            with accelerator.accumulate(self.model):
                with self.offloading:
                    loss = self.strategy.loss(self.model, batch, first_sample).mean()
                accelerator.backward(loss)
                total += loss.detach() / args.gradient_accumulation_steps
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self._trained_parameters(), args.max_grad_norm)
                    report = self._read_report(total, norm)
                    finite = math.isfinite(report.get("grad_norm", 0.0))
                # A gradient scaler skips the step itself, and lowers its scale.
                if finite or accelerator.scaler is not None:
                    self.optimizer.step()
                self.optimizer.zero_grad()
        report["lr"] = self.lr_scheduler.get_last_lr()[0]
        if finite and not self.optimizer.step_was_skipped:
            self.lr_scheduler.step()
            if self.ema is not None or self.post_hoc_ema is not None:
                parameters = self._averaged_parameters()
                for average in (self.ema, self.post_hoc_ema):
                    if average is not None:
                        average.step(parameters)
        return report

    def _read_report(self, loss: torch.Tensor, norm: torch.Tensor | float | None) -> dict[str, float]:
        """Return the report of a step over all processes. Only here does a step wait for the device."""
        values = {"loss": loss, "skipped": self.skipped, "signalled": self.interruption.signalled}
        values |= self.strategy.metrics()
        if norm is not None:
            values["grad_norm"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
        row = torch.stack(
            [value if isinstance(value, torch.Tensor) else loss.new_full((), value) for value in values.values()]
        )
        every = self.accelerator.gather(row[None]).cpu()
        report = dict(zip(values, every.mean(dim=0).tolist(), strict=True))
        # All processes stop at the same step, even if only one of them got the signal.
        self.stopped = report.pop("signalled") > 0
        return {**report, "skipped": int(every[:, 1].sum())}

    def _next_batch(self, batches: Iterator[LoadedBatch]) -> tuple[Batch, int]:
        """Return the next batch, and the number of its first sample over all processes and steps."""
        batch_number = self.records.batches * self.accelerator.num_processes + self.accelerator.process_index
        return self._batch(next(batches)), batch_number * self.args.train_batch_size

    def _batch(self, loaded: LoadedBatch) -> Batch:
        """Encode a loaded batch, and remember the position of its stream."""
        self.records.batches += 1
        self.records.states[loaded.stream] = loaded.state
        self.skipped += len(loaded.skipped)
        if loaded.skipped:
            with (self.args.output_dir / SKIPPED).open("a", encoding="utf-8") as file:
                for key, reason in loaded.skipped:
                    name = self.records.sources[key.source].name
                    line = {"step": self.step + 1, "dataset": name, **key._asdict(), "reason": reason}
                    file.write(json.dumps(line) + "\n")
        samples = loaded.records
        if self.args.cache_latents is None:
            encoded = self.encoder.encode(samples)
            samples = [
                Sample(record.key, record.task_spec, item, record)
                for record, item in zip(samples, encoded, strict=True)
            ]
        return self.maker.make(samples)

    # Reports

    def _start_trackers(self) -> None:
        args = self.args
        if self.accelerator.is_main_process and args.trackers:
            config = {name: value for name, value in as_json(args).items() if isinstance(value, (int, float, str))}
            try:
                self.accelerator.init_trackers(args.tracker_project_name, config=config)
            except Exception as error:  # of the tracker, or of the network
                names = " ".join(args.trackers)
                raise ValueError(f"--report_to {names} cannot be started: {first_line(error)}") from error

    def _report(self, report: dict[str, float], progress: tqdm) -> None:
        progress.update()
        progress.set_postfix(
            loss=f"{report['loss']:.4f}",
            lr=f"{report['lr']:.2e}",
            samples_s=f"{report['samples_per_second']:.2f}",
            skipped=report["skipped"],
        )
        values = {f"train/{name}": value for name, value in report.items()}
        for tracker in self.accelerator.trackers:
            with warned(f"--report_to {tracker.name} failed at step {self.step}"):
                tracker.log(values, step=self.step)
        if self.accelerator.is_main_process:
            write_report(self.args.output_dir, self.step, report)

    @torch.no_grad()
    def _validate(self) -> None:
        """Validate on the main process, with averaged weights if there are any. The other processes wait."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with self._averaged(), self._encoders_on_device():
                self.model.eval()
                self.validation.run(self.pipe, self.accelerator, self.step)
                self.model.train()
        self.accelerator.wait_for_everyone()

    def _measure_held_out(self) -> dict[str, float]:
        """Measure the held-out losses on the main process, with averaged weights if there are any."""
        found: list[Any] = [None, False]
        if self.accelerator.is_main_process:
            with self._averaged():
                self.model.eval()
                model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
                losses = self.early_stopping.measure(model)
                self.model.train()
                found = [losses, self.early_stopping.update(losses[HELD_OUT_LOSS], self._trained_parameters())]
        losses, self.finished = broadcast_object_list(found)
        return losses

    # Checkpoints and export

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Use the averaged weights, of `--use_ema` or of the optimizer, if there are any."""
        parameters = self._local_parameters()
        if self.ema is not None:
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
            try:
                yield
            finally:
                self.ema.restore(parameters)
        elif self.args.optimizer == "schedulefree":
            # The optimizer's way back to the weights of training rounds them.
            stored = [parameter.detach().clone() for parameter in parameters]
            self.optimizer.eval()
            try:
                yield
            finally:
                self.optimizer.train()
                with torch.no_grad():
                    for parameter, value in zip(parameters, stored, strict=True):
                        parameter.copy_(value)
        else:
            yield

    def _ema_name(self) -> str:
        fsdp = self.accelerator.distributed_type == DistributedType.FSDP
        return EMA_SHARD.format(self.accelerator.process_index) if fsdp else EMA

    def _kept_weights(self) -> list[torch.Tensor]:
        kept = self._local_parameters()
        if self.ema is not None:
            kept += self.ema.shadow_params
        if self.post_hoc_ema is not None:
            kept += [average for averages in self.post_hoc_ema.averages for average in averages]
        return kept

    def _configs(self) -> dict[str, dict[str, Any]]:
        return {name: config_of(getattr(self.pipe, name)) for name in self.method.names}

    def _write_state(self, folder: Path) -> None:
        """Write everything that an exact resume needs."""
        accelerator = self.accelerator
        self.state.save(folder)
        write_position(folder / DATA.format(accelerator.process_index), self.records, self.skipped)
        if accelerator.is_main_process:
            write_run(folder, self.step, self.args, self._configs(), accelerator)
            if self.early_stopping is not None:
                write_state(folder, EARLY_STOPPING, self.early_stopping.state_dict())
            if self.post_hoc_ema is not None:
                write_state(folder, POST_HOC_EMA, self.post_hoc_ema.state_dict())
            if strategy_state := self.strategy.state_dict():
                write_state(folder, STRATEGY, strategy_state)
        if self.ema is not None and (accelerator.is_main_process or self._ema_name() != EMA):
            write_state(folder, self._ema_name(), self.ema.state_dict())

    def _resume(self) -> None:
        args, accelerator = self.args, self.accelerator
        self._load_state()
        if accelerator.is_main_process:
            for name in (LOG, SKIPPED):
                cut_log(args.output_dir / name, self.step)
        accelerator.wait_for_everyone()

    def _load_state(self) -> None:
        accelerator = self.accelerator
        folder, step = open_checkpoint(self.args, self._configs(), accelerator)
        if folder is None:
            return
        self.state.load(folder)
        self.step = step
        self.skipped = read_position(folder / DATA.format(accelerator.process_index), self.records)
        if self.early_stopping is not None:
            self._load_part(folder, EARLY_STOPPING, self._load_early_stopping)
        if self.strategy.state_dict():
            self._load_part(folder, STRATEGY, self.strategy.load_state_dict)
        if self.ema is not None:
            self._load_part(folder, self._ema_name(), self._load_ema)
        if self.post_hoc_ema is not None:
            self._load_part(folder, POST_HOC_EMA, self.post_hoc_ema.load_state_dict)
        accelerator.print(f"resumed from {folder} at step {self.step}")

    @staticmethod
    def _load_part(folder: Path, name: str, load: Callable[[dict[str, Any]], None]) -> None:
        state = read_state(folder, name)
        with reading(json_file(folder, name)):
            load(state)

    def _load_early_stopping(self, state: dict[str, Any]) -> None:
        self.early_stopping.load_state_dict(state, self._trained_parameters())
        self.finished = self.early_stopping.exhausted

    def _load_ema(self, state: dict[str, Any]) -> None:
        check_like(state, self.ema.state_dict(), EMA)
        self.ema.load_state_dict(state)
        self.ema.to(self._averaged_parameters()[0].device)

    def _save_model(self) -> None:
        """Export the model, with the best weights of early stopping or the averaged weights, if there are any."""
        accelerator = self.accelerator
        with self._averaged(), self._encoders_on_device():
            if self.early_stopping is not None and self.early_stopping.weights is not None:
                with torch.no_grad():
                    for parameter, best in zip(self._trained_parameters(), self.early_stopping.weights, strict=True):
                        parameter.copy_(best)
            self.model.eval()
            # A compiled model has other names for its weights.
            model = getattr(self.model, "_orig_mod", self.model)
            self.method.export(self.pipe, model, accelerator, self.args.output_dir / LOG)
        if accelerator.is_main_process and self.args.push_to_hub:
            with warned(f"--push_to_hub failed; the model is in {self.args.output_dir}, try hf upload"):
                self.method.push_to_hub()
        accelerator.wait_for_everyone()


def build_accelerator(args: TrainingArguments, method: FullTraining) -> Accelerator:
    """Set up accelerate as the options and `accelerate launch` say."""
    set_seed(args.seed)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.trackers or None,
        project_config=ProjectConfiguration(str(args.output_dir), logging_dir=str(args.output_dir / args.logging_dir)),
        # Encoders have layers whose outputs are not used.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(method.encoders))],
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # accelerate reads this off a prepared data loader, which there is none of here.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = args.train_batch_size
        # DeepSpeed clips gradients itself.
        config["gradient_clipping"] = args.max_grad_norm
    if accelerator.is_fsdp2 and half_dtype(accelerator) is not None:
        # Gather weights in half precision. Gradients, timesteps and rotations stay in float32, as under autocast.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=half_dtype(accelerator), reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return accelerator
