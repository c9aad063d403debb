"""Rendered scenes with sound and known answers, for tests, benchmarks and examples."""

from .recordings import Recordings, load_recordings
from .scene import Event, Scene, random_scene
from .sounds import IMPACTS, LASTING, SOUNDS
from .write import scene_seed, write_scenes

__all__ = [
    "IMPACTS",
    "LASTING",
    "SOUNDS",
    "Event",
    "Recordings",
    "Scene",
    "load_recordings",
    "random_scene",
    "scene_seed",
    "write_scenes",
]
