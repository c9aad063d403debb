"""The metrics, by name. Importing this is cheap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """
    A metric of the catalog.

    Attributes:
        key: Its name in tables and JSON; those of av-benchmark where it has the metric.
        kind: `"frechet"`, `"frechet-inf"`, `"kernel"`, `"inception"`, `"kl"`, `"clap"`,
            `"aesthetics"`, `"desync"` or `"onsets"`.
        network: Name of the network in `catalog.NETWORKS`.
        better: `"lower"` or `"higher"`.
        needs: Any of `"reference"` (files or their statistics), `"reference_files"`, `"pairs"` (references of the same
            names), `"captions"` and `"videos"`.
    """

    key: str
    kind: str
    network: str
    better: str
    needs: tuple[str, ...] = ()


def _frechet(key: str, network: str) -> Metric:
    return Metric(key, "frechet", network, "lower", ("reference",))


def _kernel(key: str, network: str) -> Metric:
    return Metric(key, "kernel", network, "lower", ("reference_files",))


METRICS: dict[str, Metric] = {
    "fad": _frechet("FD-VGG", "vggish"),
    "fad-inf": Metric("FAD-inf", "frechet-inf", "vggish", "lower", ("reference",)),
    "fad-clap": _frechet("FD-CLAP", "clap"),
    "fd": _frechet("FD-PANN", "cnn14-16k"),
    "fd-32k": _frechet("FD-PANN-32k", "cnn14-32k"),
    "fd-passt": _frechet("FD-PASST", "passt"),
    "kad": _kernel("KAD-VGG", "vggish"),
    "kad-clap": _kernel("KAD-CLAP", "clap"),
    "kad-panns": _kernel("KAD-PANN", "cnn14-16k"),
    "kad-passt": _kernel("KAD-PASST", "passt"),
    "is": Metric("ISC-PANNS-mean", "inception", "cnn14-16k", "higher"),
    "is-32k": Metric("ISC-PANNS-32k-mean", "inception", "cnn14-32k", "higher"),
    "is-passt": Metric("ISC-PASST-mean", "inception", "passt", "higher"),
    "kl": Metric("KL-PANNS-softmax", "kl", "cnn14-16k", "lower", ("pairs",)),
    "kl-32k": Metric("KL-PANNS-32k-softmax", "kl", "cnn14-32k", "lower", ("pairs",)),
    "kl-passt": Metric("KL-PASST-softmax", "kl", "passt", "lower", ("pairs",)),
    "clap": Metric("LAION-CLAP-Score", "clap", "clap", "higher", ("captions",)),
    "pq": Metric("PQ", "aesthetics", "aesthetics", "higher"),
    "pc": Metric("PC", "aesthetics", "aesthetics", "higher"),
    "ce": Metric("CE", "aesthetics", "aesthetics", "higher"),
    "cu": Metric("CU", "aesthetics", "aesthetics", "higher"),
    "desync": Metric("DeSync", "desync", "synchformer", "lower", ("videos",)),
    "onset-f1": Metric("Onset-F1", "onsets", "onsets", "higher", ("pairs",)),
}

_OPTIONS = {
    "reference": "--reference",
    "reference_files": "--reference with a folder",
    "pairs": "--reference with files of the same names",
    "captions": "--captions",
    "videos": "--videos",
}


FRECHET = {name: metric for name, metric in METRICS.items() if metric.kind == "frechet"}


def metrics_by_need() -> dict[str, list[str]]:
    """Return the names of the metrics by what they need, such as `{"no other files": ["is"], "--captions": ["clap"]}`."""
    no_files = "no other files"
    names: dict[str, list[str]] = {no_files: []}
    for name, metric in METRICS.items():
        need = _OPTIONS[metric.needs[0]] if metric.needs else no_files
        names.setdefault(need, []).append(name)
    return names


def lacking(has: Mapping[str, bool]) -> dict[str, str]:
    """
    Return what metrics lack, by name, such as `"needs --captions"`. Metrics that can run are left out.

    Args:
        has: Which of `"reference"`, `"reference_files"`, `"pairs"`, `"captions"` and `"videos"` are there.
    """
    reasons = {}
    for name, metric in METRICS.items():
        missing = [_OPTIONS[need] for need in metric.needs if not has[need]]
        if missing:
            reasons[name] = f"needs {missing[0]}"
    return reasons


def choose(names: Sequence[str] | None, has: Mapping[str, bool], saving: bool = False) -> list[str]:
    """
    Return the names of the metrics to run.

    Args:
        names: Metrics that were asked for; `None` for all that can run.
        has: As for [`lacking`].
        saving: Whether statistics of the generated set are saved, for which Fréchet distances need no reference.

    Raises:
        ValueError: A metric that was asked for is unknown or lacks files.
    """
    reasons = lacking(has)
    if names is None:
        return [name for name in METRICS if name not in reasons]
    for name in names:
        if name not in METRICS:
            raise ValueError(f"--metrics {name}: unknown, use {', '.join(METRICS)}")
        if name in reasons and not (saving and name in FRECHET):
            raise ValueError(f"--metrics {name} {reasons[name]}")
    return [name for name in dict.fromkeys(names) if name not in reasons]


def networks_to_save(names: Sequence[str] | None) -> list[str]:
    """
    Return the networks whose statistics are saved: those of the metrics that were asked for.

    Raises:
        ValueError: None of them has embeddings.
    """
    embedding = dict.fromkeys(metric.network for metric in FRECHET.values())
    asked = {METRICS[name].network for name in names or METRICS}
    networks = [network for network in embedding if network in asked]
    if not networks:
        raise ValueError(f"--save-statistics needs one of --metrics {', '.join(FRECHET)}")
    return networks
