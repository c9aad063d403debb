"""How good the bench's own ears are."""

from collections.abc import Callable

import numpy as np

from ..models import AudioXAutoencoderOobleck
from .classifier import add_noise, smear
from .codec import reconstruct
from .items import BENCH_SEED, Bench
from .tasks import score_image, score_video


def measure_detectors(bench: Bench, vae: AudioXAutoencoderOobleck | None = None) -> dict[str, dict[str, float]]:
    """
    The bench's measures of true sounds, from which its classifier has not learned: class of clips of one class, and
    onset F1, class of events, order and count of clips of several.

    Args:
        bench: the scenes and the ears.
        vae: of the model, if there is one.

    Returns:
        The measures by name, for the sounds as they are, 10 dB quieter, with white noise mixed in at 20 and at 10 dB
        below the sound, smeared over 72 ms with the phases lost, and through the VAE.
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
    heard = {
        name: [[change(bench.listen(sound)) for sound in sounds] for sounds in (clips, scenes)]
        for name, change in changes.items()
    }
    if vae is not None:
        heard["through the VAE"] = [
            [bench.listen(reconstruct(vae, sound)) for sound in sounds] for sounds in (clips, scenes)
        ]
    return {name: _measure(bench, *sounds) for name, sounds in heard.items()}


def _measure(bench: Bench, clips: list[np.ndarray], scenes: list[np.ndarray]) -> dict[str, float]:
    of_scenes = score_video(bench, scenes)
    return {
        "class of clips": score_image(bench, clips)["class"].value,
        "onset F1": of_scenes["onset F1"].value,
        "class of events": of_scenes["class"].value,
        "order": of_scenes["order"].value,
        "count": of_scenes["count"].value,
    }
