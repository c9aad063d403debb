"""The model of a command: where it runs, whether it is one, and loading it."""

import time
from argparse import Namespace
from pathlib import Path

import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError

from ..pipelines import AudioXPipeline


def read_placement(args: Namespace) -> tuple[torch.device, torch.dtype]:
    """What `--device` and `--dtype` say, or their defaults; `ValueError` if there is no such device."""
    device = _device(args.device)
    dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    return device, getattr(torch, dtype)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {name}: not available ({reason})") from None


def check_model(model: str) -> None:
    """Raise `ValueError` or `FileNotFoundError` if a path is something else than a folder with a pipeline."""
    path = Path(model)
    if not path.exists() or (path / "model_index.json").is_file():
        return
    names = ("model.ckpt", "model.safetensors")
    if path.suffix in (".ckpt", ".safetensors") or any((path / name).is_file() for name in names):
        raise ValueError(f"--model {model}: a released checkpoint; first run: audiox convert {model} FOLDER")
    raise FileNotFoundError(f"--model {model}: no folder with a model_index.json, as `audiox convert` writes it")


def load_pipeline(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    pipeline_class: type[AudioXPipeline] = AudioXPipeline,
    **components: None,
) -> tuple[AudioXPipeline, float]:
    """The pipeline, on its device, and the seconds that took. Components given as `None` are left out."""
    start = time.perf_counter()
    try:
        pipe = pipeline_class.from_pretrained(model, dtype=dtype, **components)
        pipe.to(device)
    except RemoteEntryNotFoundError:
        raise ValueError(
            f"--model {model}: no diffusers model; if it is a released checkpoint, first run:"
            f" audiox convert {model} FOLDER"
        ) from None
    except (OSError, ValueError) as error:
        if Path(model).exists():
            raise
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise FileNotFoundError(f"--model {model}: no such folder, and no model from the Hub ({reason})") from None
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        # What the loaders of diffusers and transformers raise for folders that are damaged or contradict themselves.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--model {model}: damaged, or its configs contradict its weights ({reason})") from None
    return pipe, time.perf_counter() - start
