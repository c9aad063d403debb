"""
A second device in software. Its tensors compute on the CPU, but like those of a GPU they do not mix with CPU tensors.

Importing this module registers the device for the rest of the process, with PyTorch's interface for backends in Python
(`PrivateUse1`). `waits` counts how often the host waited for the device, by the line of this package: for `.item()` and
for each copy to the CPU. Group offloading is not supported, because it replaces the data of tensors, nor is writing of
tensors that are on the device.
"""

import traceback
from collections import Counter
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "software"
waits: Counter[str] = Counter()

_ITEM = "aten::_local_scalar_dense"
_CONVERSION = "aten::_to_copy"
_COPIES = {"aten::copy_": 0, "aten::_copy_from": 1}  # the argument that is written
_INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class _Backend:
    """The functions that PyTorch and accelerate expect in the module of a device."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed = manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: None)
    empty_cache = staticmethod(lambda: None)
    synchronize = staticmethod(lambda device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(f"{NAME}:0")


class SoftwareTensor(torch.Tensor):
    """A tensor of the device. `raw` holds its values on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "SoftwareTensor":
        raw = raw.detach()
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or DEVICE)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return super().__getitem__(_moved(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_moved(index), value)

    def __repr__(self) -> str:
        return f"SoftwareTensor({self.raw!r})"


def _moved(index: Any) -> Any:
    """Move lists in an index to the device. A GPU copies them too, and the host waits."""
    if isinstance(index, tuple):
        return tuple(map(_moved, index))
    if isinstance(index, list):
        _wait()
        return torch.tensor(index).to(DEVICE)
    return index


def _wait() -> None:
    lines = [frame for frame in traceback.extract_stack() if "/audiox_diffusers/" in frame.filename]
    waits[f"{lines[-1].filename.rpartition('/')[2]}:{lines[-1].lineno}" if lines else "caller"] += 1


def _run(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU."""
    name = function._schema.name
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, SoftwareTensor)]
    # Numbers without dimensions may be on the CPU.
    others = [tensor for tensor in tensors if not isinstance(tensor, SoftwareTensor) and tensor.ndim]
    target = kwargs.get("device")
    to_cpu = bool(ours) and name == _CONVERSION and target is not None and torch.device(target).type == "cpu"
    if name in _COPIES:
        to_cpu = bool(ours) and not isinstance(args[_COPIES[name]], SoftwareTensor)
    if name == _ITEM or to_cpu:
        _wait()
    elif ours and others and name in _INDEXING and isinstance(args[0], SoftwareTensor):
        _wait()
    elif ours and others and name not in _COPIES and name != _CONVERSION:
        shapes = [list(tensor.shape) for tensor in others]
        raise RuntimeError(f"{name}: tensors of the device and of the CPU, in the shapes {shapes}")

    written = {id(value.raw): value for value in _written(function, args, kwargs)}
    with torch._C._AutoDispatchBelowAutograd():
        output = function(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    if name == _ITEM or to_cpu:
        return output

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, SoftwareTensor):
            return value
        return written[id(value)] if id(value) in written else SoftwareTensor(value)

    return tree_map(wrap, output)


def _unwrap(value: Any) -> Any:
    if isinstance(value, SoftwareTensor):
        return value.raw
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _written(function: Any, args: tuple, kwargs: dict[str, Any]) -> list[SoftwareTensor]:
    """Return the arguments that an operation writes and returns."""
    pairs = zip(function._schema.arguments, args)
    values = [value for argument, value in pairs if argument.alias_info is not None and argument.alias_info.is_write]
    return [value for value in (*values, kwargs.get("out")) if isinstance(value, SoftwareTensor)]


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return SoftwareTensor(torch.empty(size, dtype=dtype))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return SoftwareTensor(torch.empty_strided(size, stride, dtype=dtype))


def _arange(*args, dtype=None, layout=None, device=None, pin_memory=None):
    return SoftwareTensor(torch.arange(*args, dtype=dtype))


_libraries = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_libraries[0].fallback(lambda function, *args, **kwargs: _run(function, args, kwargs), dispatch_key="PrivateUse1")
for _name, _function in {
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "arange": _arange,
    "arange.start": _arange,
    "arange.start_step": _arange,
}.items():
    _libraries[1].impl(_name, _function, "PrivateUse1")

# Parameters keep their identity when a module moves, as between other devices. Optimizers need that.
torch.__future__.set_swap_module_params_on_conversion(True)
