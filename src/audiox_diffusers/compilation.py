"""A check of the compiler, before long work depends on it."""

import torch

from .messages import first_line


def check_compiler(name: str, device: torch.device, backend: str = "inductor", mode: str | None = None) -> None:
    """
    Compile a small function and run it forward and backward.

    Args:
        name (`str`): Option that asks for the compiler, for the message.
        device (`torch.device`): Device to compile for.
        backend, mode (`str`): See [`torch.compile`].

    Raises:
        ValueError: The backend does not work here, for example because there is no C++ compiler.
    """
    try:
        function = torch.compile(lambda value: (value * 2).relu(), backend=backend, mode=mode)
        function(torch.ones(8, device=device, requires_grad=True)).sum().backward()
    except Exception as error:  # the type depends on the backend
        raise ValueError(f"{name} does not work here: {first_line(error)}") from error
    torch.compiler.reset()
