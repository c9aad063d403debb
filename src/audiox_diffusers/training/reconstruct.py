"""Averages of the weights of a finished run, with a length that is chosen after training."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from transformers.hf_argparser import HfArg

from .arguments import Arguments, Count, Folder, Range, TrainingArguments, parse
from .config_file import config_text
from .data.encoding import RecordEncoder
from .export import read_log
from .methods.early_stopping import HELD_OUT_LOSS
from .methods.full import FullTraining
from .methods.lora import LoraTraining
from .run.checkpoints import STATE, checkpoints, read_run
from .run.log import LOG
from .run.power_ema import LONGEST, POST_HOC_EMA, STORED, Profile, combine
from .run.start import start
from .run.state_files import json_file, read_state, reading

DESCRIPTION = "Average the weights of a run that was trained with --post_hoc_ema, over a length that is chosen now."
Length = Annotated[float, Range(f"above 0 and at most {LONGEST:.4f}", lambda value: 0 < value <= LONGEST)]
# Options of the run that do not apply to the average.
NOT_USED = (
    "output_dir",
    "resume_from_checkpoint",
    "report_to",
    "push_to_hub",
    "validation_metrics",
    "mixed_precision",
)


@dataclass(kw_only=True)
class ReconstructArguments(Arguments):
    _argument_group_name = "average"

    run: Folder = HfArg(help="Output folder of the run, with its checkpoints.", metadata={"metavar": "DIR"})
    output_dir: Folder = HfArg(help="Folder for the averaged model.", metadata={"metavar": "DIR"})
    sigma_rel: Length = HfArg(
        help="Length of the average: the standard deviation of its weights over time, as a share of the run, such as"
        f" 0.08. At most {LONGEST:.4f}, which is a mean over all steps."
    )
    step: Count | None = HfArg(default=None, help="Last step of the average. Defaults to the last checkpoint.")


class Reconstruction:
    """
    Average the weights of a run and export the model.

    Args:
        args: Options.

    Raises:
        ValueError: The run has no usable averages, or not those of `--step`.
    """

    def __init__(self, args: ReconstructArguments):
        self.args = args
        found = {step: path for step, path in checkpoints(args.run).items() if json_file(path, POST_HOC_EMA).is_file()}
        if not found:
            raise ValueError(f"--run {args.run} has no checkpoint with averages; train with --post_hoc_ema")
        self.step = args.step or max(found)
        if self.step not in found:
            raise ValueError(
                f"--step {self.step}: --run {args.run} has checkpoints of the steps {', '.join(map(str, found))}"
            )
        if args.output_dir.resolve() == args.run.resolve():
            raise ValueError(f"--output_dir must be another folder than --run, got {args.output_dir}")
        self.folders = [path for step, path in found.items() if step <= self.step]
        self.method = self._method(read_run(found[self.step] / STATE)["args"])

    def _method(self, options: dict[str, Any]) -> FullTraining:
        """Return the training method with the options of the run, and without what belongs to its output."""
        kind = LoraTraining if "rank" in options else FullTraining
        values = {name: value for name, value in options.items() if name not in NOT_USED}
        with tempfile.TemporaryDirectory() as name:
            config = Path(name) / "run.yaml"
            config.write_text(config_text(values), encoding="utf-8")
            argv = ["--config", str(config), "--output_dir", str(self.args.output_dir)]
            parsed: TrainingArguments = parse(kind.arguments, kind.description, argv)
        parsed.ema_sigma_rel = self.args.sigma_rel
        return kind(parsed)

    @torch.no_grad()
    def train(self) -> None:
        """Write the averaged model into the output folder."""
        accelerator, method = Accelerator(cpu=True), self.method
        pipe = method.load_pipeline(torch.float32)
        method.prepare_model(pipe)
        encoder = RecordEncoder(pipe, accelerator.device, method.args.video_prompt, method.encoders)
        model = method.build_model(encoder, None)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        error = self._average(parameters)
        self.args.output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as name:
            method.export(pipe, model.eval(), accelerator, self._write_log(Path(name)))
        print(
            f"wrote {self.args.output_dir}: average of length {self.args.sigma_rel:g} at step {self.step}, from"
            f" {len(self.folders)} checkpoints; its profile is {100 * error:.2g} % off"
        )

    def _average(self, parameters: list[torch.Tensor]) -> float:
        """Set the parameters to the average. Returns the relative error of its profile."""
        steps = [self._read(folder)["step_count"] for folder in self.folders]
        stored = [Profile(step, length) for step in steps for length in STORED]
        factors, error = combine(stored, Profile(steps[-1], self.args.sigma_rel))
        sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        factor = iter(factors.tolist())
        for folder in self.folders:
            for averages in self._read(folder)["averages"]:
                scale = next(factor)
                for total, average in zip(sums, averages, strict=True):
                    total.add_(average, alpha=scale)
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.copy_(total)
        return error

    @staticmethod
    def _read(folder: Path) -> dict[str, Any]:
        state = read_state(folder, POST_HOC_EMA)
        with reading(json_file(folder, POST_HOC_EMA)):
            return {"step_count": int(state["step_count"]), "averages": list(state["averages"])}

    def _write_log(self, folder: Path) -> Path:
        """Write the log of the steps that the average covers, without held-out losses, which are of other weights."""
        lines = [
            {name: value for name, value in report.items() if not name.startswith(HELD_OUT_LOSS)}
            for report in read_log(self.args.run / LOG)
            if report["step"] <= self.step
        ]
        log = folder / LOG
        log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return log


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command. Errors end the process with one line."""
    args = parse(ReconstructArguments, DESCRIPTION, argv, prog)
    start(lambda: Reconstruction(args))
