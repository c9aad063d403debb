"""Counters in the text format of Prometheus."""

import threading
from collections import defaultdict

PREFIX = "audiox_"

# name: (type, help)
METRICS = {
    "requests_total": ("counter", "HTTP requests by route and status."),
    "jobs_total": ("counter", "Finished jobs by status."),
    "batches_total": ("counter", "Batches that were generated."),
    "batch_sounds_total": ("counter", "Sounds in these batches."),
    "steps_total": ("counter", "Denoising steps."),
    "generation_seconds_total": ("counter", "Seconds spent on batches."),
    "audio_seconds_total": ("counter", "Seconds of audio that were generated."),
    "queue_wait_seconds_total": ("counter", "Seconds that jobs waited in the queue."),
    "queue_depth": ("gauge", "Jobs that wait or are being uploaded."),
    "models_loaded": ("gauge", "Models in memory."),
    "model_bytes": ("gauge", "Bytes of their weights."),
    "memory_bytes": ("gauge", "Resident memory of the process."),
    "results_bytes": ("gauge", "Bytes of the results that are kept."),
}


class Metrics:
    """Numbers by name and labels."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Increase a counter."""
        with self._lock:
            self._values[name, tuple(labels.items())] += value

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._values[name, ()] = value

    def get(self, name: str, **labels: str) -> float:
        """Return a number, 0 if it was never set."""
        with self._lock:
            return self._values.get((name, tuple(labels.items())), 0.0)

    def text(self) -> str:
        """Return all numbers in the text format."""
        with self._lock:
            values = dict(self._values)
        lines = []
        for name, (kind, description) in METRICS.items():
            lines += [f"# HELP {PREFIX}{name} {description}", f"# TYPE {PREFIX}{name} {kind}"]
            rows = {labels: value for (own, labels), value in values.items() if own == name}
            for labels, value in sorted(rows.items()) or [((), 0.0)]:
                shown = ",".join(f'{label}="{text}"' for label, text in labels)
                lines.append(f"{PREFIX}{name}{{{shown}}} {value:g}" if shown else f"{PREFIX}{name} {value!r}")
        return "\n".join(lines) + "\n"
