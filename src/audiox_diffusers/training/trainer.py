"""The loop: batches, steps, checkpoints, reports."""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    broadcast,
    set_seed,
)
from diffusers.training_utils import EMAModel
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from .arguments import as_json, masking_config
from .checkpoints import open_checkpoint, save_checkpoint, write_json, write_run
from .data.batches import Batch, BatchMaker, Sample
from .data.encoding import RecordEncoder
from .data.latent_cache import CacheReader, read_null_embeddings, write_cache
from .data.loading import LoadedBatch, RecordBatches, load_batches
from .interruption import Interruption, stopped_at
from .log import LOG, SKIPPED, cut_log, write_report
from .lr_schedules import get_lr_scheduler
from .methods.full import FullTuning
from .methods.model import AudioXTrainingModel
from .parts import (
    ENCODERS,
    build_optimizer,
    build_reader,
    cache_description,
    configs_of,
)
from .validation import Validation

DATA = "data-{}.json"
EMA = "ema.bin"
EMA_SHARD = "ema-{}.bin"
STRATEGY = "strategy.bin"
EARLY_STOPPING = "early-stopping.bin"


class Trainer:
    """
    A training run.

    Args:
        args: of [`parse_args`].
        tuning: what is trained, and what is made of it.

    Attributes:
        step (`int`): optimizer steps taken.

    Raises:
        ValueError: naming the argument that is wrong.
    """

    def __init__(self, args: argparse.Namespace, tuning: type = FullTuning):
        self.args = args
        self.tuning = tuning(args)
        self.step = 0
        self.skipped = 0
        self.interruption = Interruption()
        self.stopped = self.finished = False
        self.accelerator = build_accelerator(args, self.tuning)
        self.sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.sharded and args.validation_prompts is not None:
            raise ValueError("--validation_prompts needs whole weights; with FSDP and DeepSpeed leave it out")
        self.tuning.check_devices(self.accelerator)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED and args.use_ema:
            raise ValueError("--use_ema would average half-precision weights with DeepSpeed; leave it out or use FSDP")
        if self.accelerator.is_main_process:
            args.output_dir.mkdir(parents=True, exist_ok=True)

        self.pipe = self.tuning.load_pipeline(half_dtype(self.accelerator) or torch.float32)
        self.validation = None if args.validation_prompts is None else Validation(args)
        self._prepare_data()
        self._prepare_model()
        self._resume()

    def _prepare_data(self) -> None:
        args, accelerator, pipe = self.args, self.accelerator, self.pipe
        self._move_encoders(accelerator.device)
        self.tuning.prepare_data(pipe, accelerator)
        datasets = self.tuning.open_datasets()
        sources = [dataset.source for dataset in datasets]
        reader = build_reader(args, pipe, datasets)
        self.encoder = RecordEncoder(pipe, accelerator.device, args.video_prompt, self.tuning.encoders)
        if args.cache_latents is None:
            null_embeddings = self.encoder.null_embeddings()
        else:
            description = {**cache_description(args, pipe, datasets), **self.tuning.cache_description()}
            sources = write_cache(
                args.cache_latents,
                description,
                sources,
                reader,
                self.encoder,
                args.dataloader_num_workers,
                accelerator,
            )
            reader, null_embeddings = CacheReader(reader), read_null_embeddings(args.cache_latents)
        self.strategy = self.tuning.build_strategy(pipe)
        self.early_stopping = self.tuning.build_early_stopping(
            pipe, self.encoder, null_embeddings, self.strategy, accelerator.device
        )
        if args.cache_latents is not None:
            self._move_encoders(torch.device("cpu"))
        self.maker = BatchMaker(
            pipe.conditioner.config,
            (pipe.transformer.config.in_channels, pipe.transformer.config.sample_size),
            null_embeddings,
            masking_config(args),
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

    def _move_encoders(self, device: torch.device) -> None:
        for name in ENCODERS:
            if getattr(self.pipe, name) is not None:
                getattr(self.pipe, name).to(device)

    @contextmanager
    def _encoders_on_device(self) -> Iterator[None]:
        """While the pipeline makes sounds. They are elsewhere where the data is cached."""
        self._move_encoders(self.accelerator.device)
        yield
        if self.args.cache_latents is not None:
            self._move_encoders(torch.device("cpu"))

    def _prepare_model(self) -> None:
        args, accelerator = self.args, self.accelerator
        self.tuning.prepare_model(self.pipe)
        self.strategy.prepare(accelerator)
        model = AudioXTrainingModel(self.encoder, half_dtype(accelerator))
        if accelerator.is_fsdp2:
            # It refuses parameters without an axis to shard, such as the gates of the fusion. With one they do the same.
            for parameter in model.parameters():
                if parameter.dim() == 0:
                    parameter.data = parameter.data[None]
        optimizer = build_optimizer(args, model, accelerator.num_processes)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        # Not prepared: accelerate would take a step of it for each process.
        self.lr_scheduler = get_lr_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
            num_cycles=args.lr_num_cycles,
            power=args.lr_power,
            inv_gamma=args.lr_inv_gamma,
            warmup_decay=args.lr_warmup_decay,
        )
        accelerator.register_for_checkpointing(self.lr_scheduler)
        accelerator.register_save_state_pre_hook(_leave_out_frozen)
        self.ema = EMAModel(self._local_parameters(), decay=args.ema_decay) if args.use_ema else None

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _local_parameters(self) -> list[torch.Tensor]:
        """What this process holds of them: shares their memory, and can be averaged without the other processes."""
        return [
            parameter.to_local() if isinstance(parameter, DTensor) else parameter
            for parameter in self._trained_parameters()
        ]

    # The loop

    def train(self) -> None:
        """Train to the last step, or until SIGTERM; then save the model."""
        accelerator = self.accelerator
        with self.interruption:
            self._start_trackers()
            self._take_steps()
        if self.stopped:
            accelerator.print(stopped_at(self.step))
        else:
            if self.finished:
                accelerator.print(f"stopped at step {self.step}: the held-out loss falls no more")
            self._save_model()
        accelerator.end_training()

    def _take_steps(self) -> None:
        args, accelerator = self.args, self.accelerator
        batches = load_batches(self.records, args.dataloader_num_workers)
        self.model.train()
        with tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc="steps",
            disable=not accelerator.is_local_main_process,
        ) as progress:
            while self.step < args.max_train_steps and not self.stopped and not self.finished:
                started = time.perf_counter()
                report = self._train_step(batches)
                self.step += 1
                seconds = time.perf_counter() - started
                samples = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
                report["samples_per_second"] = samples / seconds
                due = self.step == args.max_train_steps or self.step % args.validation_steps == 0
                if self.early_stopping is not None and due:
                    report["held_out_loss"] = self._measure_held_out()
                self._report(report, progress)
                last = self.step == args.max_train_steps or self.finished
                if last or self.stopped or self.step % args.checkpointing_steps == 0:
                    save_checkpoint(
                        accelerator, args.output_dir, self.step, self._write_state, args.checkpoints_total_limit
                    )
                if self.validation is not None and (last or self.step % args.validation_steps == 0):
                    self._validate()

    def _train_step(self, batches) -> dict[str, float]:
        """One step of the optimizer; what is to be reported of it."""
        args, accelerator = self.args, self.accelerator
        total, norm = torch.zeros((), device=accelerator.device), None
        for _ in range(args.gradient_accumulation_steps):
            first_sample = (
                self.records.batches * accelerator.num_processes + accelerator.process_index
            ) * args.train_batch_size
            batch = self._batch(next(batches))
            with accelerator.accumulate(self.model):
                loss = self.strategy.loss(self.model, batch, first_sample).mean()
                accelerator.backward(loss)
                total += loss.detach() / args.gradient_accumulation_steps
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self._trained_parameters(), args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        if not self.optimizer.step_was_skipped:
            self.lr_scheduler.step()
            if self.ema is not None:
                self.ema.step(self._local_parameters())
        local = torch.tensor([total, self.skipped, self.interruption.signalled], device=accelerator.device)
        every = accelerator.gather(local[None])
        # All processes stop at the same step, though the signal may come to one of them, or between two steps.
        self.stopped = bool(every[:, 2].any())
        report = {"loss": every[:, 0].mean().item(), "lr": learning_rate, "skipped": int(every[:, 1].sum())}
        return report if norm is None else {**report, "grad_norm": float(norm)}

    def _batch(self, loaded: LoadedBatch) -> Batch:
        """Encode what a worker loaded, and note where its stream stands."""
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
        if self.accelerator.is_main_process and args.report_to != "none":
            config = {name: value for name, value in as_json(args).items() if isinstance(value, (int, float, str))}
            self.accelerator.init_trackers(args.tracker_project_name, config=config)

    def _report(self, report: dict[str, float], progress: tqdm) -> None:
        progress.update()
        progress.set_postfix(
            loss=f"{report['loss']:.4f}",
            lr=f"{report['lr']:.2e}",
            samples_s=f"{report['samples_per_second']:.2f}",
            skipped=report["skipped"],
        )
        self.accelerator.log({f"train/{name}": value for name, value in report.items()}, step=self.step)
        if self.accelerator.is_main_process:
            write_report(self.args.output_dir, self.step, report)

    @torch.no_grad()
    def _validate(self) -> None:
        """With the averaged weights, where they are kept. The other processes wait."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with self._averaged(), self._encoders_on_device():
                self.model.eval()
                self.validation.run(self.pipe, self.accelerator, self.step)
                self.model.train()
        self.accelerator.wait_for_everyone()

    def _measure_held_out(self) -> float:
        """Of the averaged weights, where they are kept. What the main process finds goes for all of them."""
        accelerator = self.accelerator
        found = torch.zeros(2, device=accelerator.device)
        if accelerator.is_main_process:
            with self._averaged():
                self.model.eval()
                loss = self.early_stopping.measure(accelerator.unwrap_model(self.model))
                self.model.train()
                found[0], found[1] = loss, self.early_stopping.update(loss, self._trained_parameters())
        found = broadcast(found)
        self.finished = bool(found[1])
        return found[0].item()

    # What is kept

    def _averaged(self):
        return _Averaged(self.ema, self._local_parameters())

    def _ema_file(self) -> str:
        fsdp = self.accelerator.distributed_type == DistributedType.FSDP
        return EMA_SHARD.format(self.accelerator.process_index) if fsdp else EMA

    def _write_state(self, folder: Path) -> None:
        """Everything that an exact resume needs."""
        accelerator, records = self.accelerator, self.records
        accelerator.save_state(str(folder))
        data = {"batches": records.batches, "skipped": self.skipped, "streams": records.states}
        write_json(folder / DATA.format(accelerator.process_index), data)
        if accelerator.is_main_process:
            write_run(folder, self.step, self.args, configs_of(self.pipe, self.tuning.names), accelerator)
            torch.save(self.strategy.state_dict(), folder / STRATEGY)
            if self.early_stopping is not None:
                torch.save(self.early_stopping.state_dict(), folder / EARLY_STOPPING)
        if self.ema is not None and (accelerator.is_main_process or self._ema_file() != EMA):
            torch.save(self.ema.state_dict(), folder / self._ema_file())

    def _resume(self) -> None:
        args, accelerator = self.args, self.accelerator
        self._load_state()
        if accelerator.is_main_process:
            for name in (LOG, SKIPPED):
                cut_log(args.output_dir / name, self.step)
        accelerator.wait_for_everyone()

    def _load_state(self) -> None:
        args, accelerator = self.args, self.accelerator
        folder, step = open_checkpoint(args, configs_of(self.pipe, self.tuning.names), accelerator)
        if folder is None:
            return
        # What is frozen is not in it.
        accelerator.load_state(str(folder), **({} if self.sharded else {"strict": False}))
        self.step = step
        data = json.loads((folder / DATA.format(accelerator.process_index)).read_text(encoding="utf-8"))
        self.skipped = data["skipped"]
        self.records.batches = data["batches"]
        self.records.states = {int(stream): position for stream, position in data["streams"].items()}
        self.strategy.load_state_dict(torch.load(folder / STRATEGY, weights_only=True))
        if self.early_stopping is not None:
            self.early_stopping.load_state_dict(torch.load(folder / EARLY_STOPPING, weights_only=True))
            self.finished = self.early_stopping.exhausted
        if self.ema is not None:
            device = self.ema.shadow_params[0].device
            self.ema.load_state_dict(torch.load(folder / self._ema_file(), weights_only=True, map_location=device))
        accelerator.print(f"resumed from {folder} at step {self.step}")

    def _save_model(self) -> None:
        """What was trained: with the best weights of early stopping, or the averaged ones, where either is kept."""
        accelerator = self.accelerator
        with self._averaged(), self._encoders_on_device():
            if self.early_stopping is not None and self.early_stopping.weights is not None:
                with torch.no_grad():
                    for parameter, best in zip(self._trained_parameters(), self.early_stopping.weights, strict=True):
                        parameter.copy_(best)
            self.model.eval()
            self.tuning.export(self.pipe, self.model, accelerator, self.args.output_dir / LOG)
        if accelerator.is_main_process and self.args.push_to_hub:
            self.tuning.push_to_hub()
        accelerator.wait_for_everyone()


class _Averaged:
    """The averaged weights in the place of the last ones."""

    def __init__(self, ema: EMAModel | None, parameters: list[torch.Tensor]):
        self.ema = ema
        self.parameters = parameters

    def __enter__(self) -> None:
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)

    def __exit__(self, *error: object) -> None:
        if self.ema is not None:
            self.ema.restore(self.parameters)


def build_accelerator(args: argparse.Namespace, tuning: FullTuning) -> Accelerator:
    """As the command line and `accelerate launch` say."""
    set_seed(args.seed)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(str(args.output_dir), logging_dir=str(args.output_dir / args.logging_dir)),
        # Encoders have layers whose outputs are not used.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(tuning.encoders))],
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # Otherwise read off a data loader, which accelerate is not given here.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = args.train_batch_size
        # DeepSpeed clips by itself.
        config["gradient_clipping"] = args.max_grad_norm
    if accelerator.is_fsdp2 and half_dtype(accelerator) is not None:
        # Weights are gathered in half precision; the rest is as it is under autocast elsewhere: gradients are summed in
        # float32, and times and rotations stay in float32.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=half_dtype(accelerator), reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return accelerator


def _leave_out_frozen(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
    """Of a checkpoint: what the pipeline is loaded with again."""
    for model, state_dict in zip(models, weights):
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                state_dict.pop(name, None)


def half_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """Of mixed precision, `None` without."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
