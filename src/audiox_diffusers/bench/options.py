"""Tasks of the bench and checks of its options, without heavy imports."""

from collections.abc import Sequence

VAE = "vae"
ALL_TASKS = ("text", "video", "image", "audio", "silence", "missing", VAE)


def check_tasks(tasks: Sequence[str] | None, sweep: bool = False) -> list[str]:
    """Return the tasks without repetitions, by default all; raise `ValueError` if one is unknown or there is none."""
    allowed = [name for name in ALL_TASKS if not (sweep and name == VAE)]
    tasks = list(dict.fromkeys(allowed if tasks is None else tasks))
    unknown = [name for name in tasks if name not in allowed]
    if unknown or not tasks:
        given = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"`tasks` must be some of {', '.join(allowed)}{' for a sweep' if sweep else ''}, got {given}")
    return tasks


def check_counts(seeds: int, count: int) -> None:
    """Raise `ValueError` if a number is below 1."""
    for name, value in (("seeds", seeds), ("count", count)):
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value!r}")
