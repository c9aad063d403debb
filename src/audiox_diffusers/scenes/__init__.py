"""Small drawn scenes with sound, of which everything is known: for tests, benchmarks and examples."""

from .scene import Event, Scene, random_scene
from .sounds import IMPACTS, LASTING, SOUNDS
from .write import write_scenes

__all__ = ["IMPACTS", "LASTING", "SOUNDS", "Event", "Scene", "random_scene", "write_scenes"]
