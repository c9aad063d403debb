"""Rendered scenes with sound and known answers, for tests, benchmarks and examples."""

from typing import TYPE_CHECKING

from .._imports import lazy_names

if TYPE_CHECKING:
    from .recordings import Recordings, load_recordings
    from .scene import Event, Scene, random_scene
    from .sounds import IMPACTS, LASTING, SOUNDS
    from .write import scene_seed, write_scenes

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "recordings": ["Recordings", "load_recordings"],
        "scene": ["Event", "Scene", "random_scene"],
        "sounds": ["IMPACTS", "LASTING", "SOUNDS"],
        "write": ["scene_seed", "write_scenes"],
    },
)
