"""Models by path or name, on a device and in a precision."""

import json
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError

from ..compilation import check_compiler
from ..loaders.releases import EXPECTED, find_layout, find_release
from ..messages import first_line
from ..pipelines import AudioXPipeline, load_original_checkpoint

# A dtype for all networks, or one for some of them, as `from_pretrained` takes it.
Dtype = torch.dtype | dict[str, torch.dtype]
# The transformer takes most of the time. The others stay in float32, because oneDNN computes some strided convolutions
# wrong in bfloat16 on CPUs with AMX.
MIXED = {"transformer": torch.bfloat16, "default": torch.float32}


@dataclass(frozen=True)
class Placement:
    """
    The device and precision of a pipeline.

    Args:
        device (`torch.device`): Device of all networks.
        dtype (`torch.dtype` or `dict[str, torch.dtype]`): One dtype, or one for each component.
        compiled (`bool`): Whether the transformer is compiled.
    """

    device: torch.device
    dtype: Dtype = torch.float32
    compiled: bool = False


def read_placement(args: Namespace, precise_on_cpu: bool = False) -> Placement:
    """
    Return the placement of a command's pipeline.

    Args:
        args (`Namespace`): Arguments of the command.
        precise_on_cpu (`bool`): Whether the default dtype is float32 on every CPU.

    Raises:
        ValueError: The device is not available.
    """
    device = _device(args.device)
    if args.dtype == "mixed":
        dtype = MIXED
    elif args.dtype is not None:
        dtype = getattr(torch, args.dtype)
    elif device.type == "cpu" and has_bfloat16() and not precise_on_cpu:
        dtype = MIXED
    else:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # Some commands have no --compile.
    return Placement(device, dtype, compiled=getattr(args, "compile", False))


def dtype_name(dtype: Dtype) -> str:
    """Return the value of `--dtype` for a dtype."""
    return "mixed" if dtype == MIXED else str(dtype).removeprefix("torch.")


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AVX512-BF16). CPUs with AMX have these too."""
    return torch.cpu._is_avx512_bf16_supported()


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("it computes nothing")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not available ({first_line(error)})") from None


def check_model(model: str) -> None:
    """
    Check that a path leads to a model: a folder of diffusers, or a released checkpoint. Names are not checked.

    Raises:
        FileNotFoundError: It does not.
    """
    path = Path(model)
    if not path.exists():
        return
    if (path / "model_index.json").is_file():
        _check_class(path / "model_index.json", model)
        return
    if path.is_dir() and find_layout(lambda name: (path / name).is_file()) is None:
        raise FileNotFoundError(
            f"--model {model}: no model in this folder. Expected model_index.json, or a released checkpoint: {EXPECTED}"
        )
    if path.is_file() and path.suffix not in (".ckpt", ".safetensors"):
        raise FileNotFoundError(f"--model {model}: neither a folder nor a .ckpt or .safetensors file")


def _check_class(index: Path, model: str) -> None:
    """Raise `ValueError` if a folder of diffusers has the pipeline of another model."""
    try:
        name = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "")
    except (ValueError, AttributeError):
        raise ValueError(f"--model {model}: its model_index.json is damaged") from None
    if isinstance(name, str) and name and not name.startswith("AudioX"):
        raise ValueError(f"--model {model}: a {name}, not an AudioX model")


def load_pipeline(
    model: str,
    placement: Placement,
    pipeline_class: type[AudioXPipeline] = AudioXPipeline,
    **components: None,
) -> tuple[AudioXPipeline, float]:
    """
    Load the pipeline of a command.

    Args:
        model (`str`): A folder, a released checkpoint, a name or a Hub id.
        placement (`Placement`): Its device and precision.
        pipeline_class (`type`): Class of the pipeline.
        components (`None`): Components to leave out, each as `None`.

    Returns:
        The pipeline, and the seconds that loading took.

    Raises:
        ValueError, OSError: The model does not exist, is damaged or cannot be downloaded, or there is no compiler.
    """
    start = time.perf_counter()
    if placement.compiled:
        check_compiler("--compile", placement.device)
    try:
        pipe = _load(model, placement.dtype, pipeline_class, components)
        pipe.to(placement.device)
    except (OSError, ValueError) as error:
        if Path(model).exists() or find_release(model) is not None:
            if model in str(error):
                raise
            raise ValueError(f"--model {model}: {first_line(error)}") from None
        why = first_line(error.__cause__ or error)
        raise FileNotFoundError(f"--model {model}: no such folder, and no model from the Hub ({why})") from None
    except UnpicklingError:
        raise ValueError(f"--model {model}: its weights are pickled with code, which is never run") from None
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        # What diffusers and transformers raise for folders that are damaged or contradict themselves.
        raise ValueError(
            f"--model {model}: damaged, or its configs contradict its weights ({first_line(error)})"
        ) from None
    if placement.compiled:
        pipe.compile()
    return pipe, time.perf_counter() - start


def _load(
    model: str, dtype: Dtype, pipeline_class: type[AudioXPipeline], components: dict[str, None]
) -> AudioXPipeline:
    path = Path(model)
    if not path.exists() or (path / "model_index.json").is_file():
        try:
            return pipeline_class.from_pretrained(model, dtype=dtype, **components)
        except RemoteEntryNotFoundError:
            pass  # A repository without model_index.json may hold a released checkpoint.
    pipe = load_original_checkpoint(model, dtype=dtype)
    return pipe if pipeline_class is AudioXPipeline else pipeline_class.from_pipe(pipe)
