"""Accuracy of the bench's own metrics on rendered scenes."""

from collections.abc import Callable

import numpy as np

from ..models import AudioXAutoencoderOobleck
from .augmentation import add_noise, smear
from .codec import reconstruct
from .items import BENCH_SEED, Bench
from .tasks import score_image, score_video


def measure_detectors(bench: Bench, vae: AudioXAutoencoderOobleck | None = None) -> dict[str, dict[str, float]]:
    """
    Apply the metrics to the true sounds of scenes, which the classifier was not trained on.

    Args:
        bench: Scenes and classifier.
        vae: VAE of the model, if any.

    Returns:
        For the sounds as rendered, 10 dB quieter, with white noise 20 and 10 dB below the sound, smeared over 72 ms with
        random phases, and reconstructed by the VAE: the class accuracy on clips of one class, and onset F1, class,
        order and count accuracy on clips of several.
    """
    rng = np.random.default_rng(BENCH_SEED)
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "as rendered": lambda sound: sound,
        "10 dB quieter": lambda sound: sound * np.float32(10 ** (-10 / 20)),
        "noise 20 dB below": lambda sound: add_noise(sound, rng, 20),
        "noise 10 dB below": lambda sound: add_noise(sound, rng, 10),
        "smeared": lambda sound: smear(sound, rng, radius=4, keep_phases=False),
    }
    clips = [bench.render(item.scene) for item in bench.pictures]
    scenes = [bench.render(scene) for scene in bench.scenes]
    changed = {
        name: [[change(bench.preprocess(sound)) for sound in sounds] for sounds in (clips, scenes)]
        for name, change in changes.items()
    }
    if vae is not None:
        changed["through the VAE"] = [
            [bench.preprocess(reconstruct(vae, sound)) for sound in sounds] for sounds in (clips, scenes)
        ]
    return {name: _measure(bench, *sounds) for name, sounds in changed.items()}


def _measure(bench: Bench, clips: list[np.ndarray], scenes: list[np.ndarray]) -> dict[str, float]:
    scores = score_video(bench, scenes)
    return {
        "class of clips": score_image(bench, clips)["class"].value,
        "onset F1": scores["onset F1"].value,
        "class of events": scores["class"].value,
        "order": scores["order"].value,
        "count": scores["count"].value,
    }
