"""Tasks of the bench, and checks that need none of its code."""

from collections.abc import Sequence

VAE = "vae"
ALL_TASKS = ("text", "video", "image", "audio", "silence", "missing", VAE)


def check_options(tasks: Sequence[str] | None, seeds: int, count: int) -> list[str]:
    """Return the tasks without repetitions, by default all; raise `ValueError` if an argument is out of range."""
    tasks = list(dict.fromkeys(ALL_TASKS if tasks is None else tasks))
    unknown = [name for name in tasks if name not in ALL_TASKS]
    if unknown or not tasks:
        got = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"`tasks` must be some of {', '.join(ALL_TASKS)}, got {got}")
    for name, value in (("seeds", seeds), ("count", count)):
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value!r}")
    return tasks
