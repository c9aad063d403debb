"""Metrics of a server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Counters, gauges and histograms, each under its own name with the prefix `audiox_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"namespace": "audiox", "registry": self.registry}
        self.requests = Counter("requests", "HTTP requests by route and status.", ["route", "status"], **own)
        self.jobs = Counter("jobs", "Finished jobs by status.", ["status"], **own)
        self.steps = Counter("steps", "Denoising steps.", **own)
        self.audio = Counter("audio_seconds", "Seconds of audio that were generated.", **own)
        self.wait = Histogram("queue_wait_seconds", "Seconds that jobs waited.", buckets=SECONDS, **own)
        self.generation = Histogram("generation_seconds", "Seconds that batches took.", buckets=SECONDS, **own)
        self.batches = Histogram("batch_sounds", "Sounds per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), **own)
        self.queue = Gauge("queue_depth", "Requests that wait or are being uploaded.", **own)
        self.models = Gauge("models_loaded", "Models in memory.", **own)
        self.model_bytes = Gauge("model_bytes", "Size of their weights.", **own)
        self.memory = Gauge("memory_bytes", "Resident memory of the process.", **own)
        self.results = Gauge("results_bytes", "Size of the results that are kept.", **own)

    def text(self) -> str:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry).decode()
