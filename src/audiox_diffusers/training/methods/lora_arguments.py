"""Options of LoRA training."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from transformers.hf_argparser import HfArg

from ...loaders import CHANGES_BASE
from ..arguments import Arguments, Count, Decay, Positive, TrainingArguments
from .held_out_arguments import HeldOutArguments
from .quantization import QUANTIZATIONS, check_quantization

# Options that an existing adapter decides.
OF_ADAPTER = {
    "rank",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "target_blocks",
    "init_lora_weights",
    "use_dora",
    "use_rslora",
}
INITS = ("default", "gaussian", "orthogonal", "olora", "pissa")


@dataclass(kw_only=True)
class AdapterArguments(Arguments):
    _argument_group_name = "adapter"

    rank: Count = HfArg(default=16, help="Rank of the layers.")
    lora_alpha: Positive | None = HfArg(
        default=None, help="Alpha. The output of the layers is scaled by alpha / rank. Defaults to the rank."
    )
    lora_dropout: Decay = HfArg(default=0.0, help="Dropout of the layers.")
    target_modules: list[str] | None = HfArg(
        default=None, help="Modules of the transformer that get layers. Defaults to the attention projections."
    )
    target_blocks: str | None = HfArg(
        default=None,
        help="Blocks of the transformer that get layers, counted from 0, such as 8-23 or 0-3,20-23. Defaults to all.",
        metadata={"metavar": "BLOCKS"},
    )
    init_adapter: str | None = HfArg(
        default=None,
        help="Adapter to start from: its folder, its file, or its Hub id. Rank, alpha, modules and kind are those of the"
        " adapter.",
        metadata={"metavar": "DIR"},
    )
    init_lora_weights: str = HfArg(
        default="default",
        help=f"Initialization, one of {', '.join(INITS)}, or pissa_niter_N, which approximates pissa in N iterations."
        " See peft.LoraConfig.",
    )
    use_dora: bool = HfArg(default=False, help="Use DoRA (arXiv 2402.09353).")
    use_rslora: bool = HfArg(default=False, help="Scale by alpha / sqrt(rank) (arXiv 2312.03732).")
    train_conditioner: bool = HfArg(
        default=False,
        help="Add layers to the conditioner's projections of video and audio too.",
    )
    quantization: str | None = HfArg(
        default=None,
        help="Quantization of the frozen transformer. bnb needs a GPU.",
        metadata={"choices": tuple(QUANTIZATIONS)},
    )
    no_cache_latents: bool = HfArg(
        default=False,
        help="Encode the data in every step. Otherwise it is cached, by default in cache inside the output folder.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        init = self.init_lora_weights
        if init not in INITS and not re.fullmatch(r"pissa_niter_\d+", init):
            raise ValueError(f"--init_lora_weights must be one of {', '.join(INITS)}, pissa_niter_N, got {init!r}")
        for name in ("use_dora", "quantization"):
            if init.startswith(CHANGES_BASE) and getattr(self, name):
                raise ValueError(f"--init_lora_weights {init} changes the base model's weights; leave out --{name}")
        if init == "orthogonal" and self.rank % 2:
            raise ValueError(f"--init_lora_weights orthogonal needs an even --rank, got {self.rank}")
        check_quantization(self.quantization)
        self.blocks()
        if self.init_adapter is not None:
            for field in fields(AdapterArguments):
                if field.name in OF_ADAPTER and getattr(self, field.name) != field.default:
                    raise ValueError(f"--{field.name} is that of --init_adapter; leave it out")

    def blocks(self) -> list[int] | None:
        """
        Parse `target_blocks`.

        Returns:
            Numbers of blocks in order, `None` for all.

        Raises:
            ValueError: It is malformed.
        """
        if self.target_blocks is None:
            return None
        numbers: set[int] = set()
        for part in self.target_blocks.split(","):
            match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, re.ASCII)
            found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
            if not found:
                raise ValueError(
                    f"--target_blocks must be numbers and ranges such as 8-23 or 0-3,20-23, got {self.target_blocks!r}"
                )
            numbers.update(found)
        return sorted(numbers)


@dataclass(kw_only=True)
class PriorArguments(Arguments):
    _argument_group_name = "prior preservation"

    with_prior_preservation: bool = HfArg(
        default=False, help="Also train on audio that the base model generates, so that it forgets less."
    )
    prior_loss_weight: Positive = HfArg(default=1.0, help="Weight of the loss on generated audio.")
    class_data_dir: Path | None = HfArg(
        default=None, help="Folder of the generated audio. Defaults to class in the output folder."
    )
    class_prompt: list[str] | None = HfArg(default=None, help="Captions to generate audio for, in turn.")
    num_class_sounds: Count = HfArg(default=50, help="Number of generated files. Missing ones are generated.")


@dataclass(kw_only=True)
class LoraCardArguments(Arguments):
    _argument_group_name = "model card"

    trigger_words: list[str] | None = HfArg(default=None, help="Words in captions that ask for the new sound.")
    data_license: str | None = HfArg(default=None, help="Licence of the data.")


@dataclass(kw_only=True)
class LoraArguments(TrainingArguments, AdapterArguments, PriorArguments, HeldOutArguments, LoraCardArguments):
    learning_rate: Positive = 1e-4
    train_batch_size: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.no_cache_latents and self.cache_latents is not None:
            raise ValueError("--no_cache_latents cannot be combined with --cache_latents")
        if not self.no_cache_latents:
            self.cache_latents = self.cache_latents or self.output_dir / "cache"
        if self.with_prior_preservation:
            self.class_data_dir = self.class_data_dir or self.output_dir / "class"
