"""Scenes with known answers, as prompts for a model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import count, groupby

import numpy as np
import torch

from ..media import resample_audio
from ..pipelines import AudioXPipeline
from ..scenes import IMPACTS, LASTING, Event, Recordings, Scene, random_scene, scene_seed
from ..scenes.scene import IMPACT_SECONDS
from ..scenes.sounds import LOWEST_SAMPLING_RATE
from .classifier import CLASSES, SoundClassifier, train_classifier
from .features import preprocess

# The scenes of the bench have the seeds of `write_scenes(folder, n, seed)` from here to 4 above. Do not train on them.
BENCH_SEED = 9_000_000

# Added to the seed for each kind of scene.
ONE_CLASS, TWO_CLASSES, MIXED, FULL, TEMPLATES = range(5)

SHORTEST_WINDOW = 2.0  # seconds
LONGEST = 10.0  # seconds, the pipelines' default
PICTURE_FPS = 25  # of the videos that the model's frames are taken from
GAP = (0.4, 0.65)  # start and end, as shares of the audio prompt
ATTEMPTS = 1000  # seeds reserved for each scene
SMALLEST_REST = 0.3  # seconds between two events of one class, so that they can be told apart


@dataclass(frozen=True, eq=False)
class Item:
    """
    A prompt for the model, and the scene that it should generate.

    Attributes:
        scene: Scene with the true sound.
        noise: Number of the initial noise among those of a seed.
        prompt, video, image, audio: Inputs of the pipeline; `None` for those not given.
        gap: Start and end of the silenced part of `audio` in seconds, if any.
    """

    scene: Scene
    noise: int
    prompt: str | None = None
    video: np.ndarray | None = None
    image: np.ndarray | None = None
    audio: tuple[np.ndarray, int] | None = field(default=None, repr=False)
    gap: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Bench:
    """
    Items of all tasks for one model, and the classifier for its sounds. They depend on the attributes alone and are
    created on first use.

    Attributes:
        sampling_rate: Sampling rate of the model in Hz.
        channels: Number of audio channels of the model.
        seconds: Length of the sounds to generate.
        video_fps: Frame rate of the model's video input.
        prompt_seconds: Length of the model's audio prompt.
        count: Number of items for each task.
        recordings: Recordings that replace synthesised sounds, at `render_rate(sampling_rate)`.
    """

    sampling_rate: int
    channels: int
    seconds: float
    video_fps: float
    prompt_seconds: float
    count: int
    recordings: Recordings | None = None

    @classmethod
    def for_pipeline(cls, pipe: AudioXPipeline, count: int, recordings: Recordings | None = None) -> "Bench":
        """Create the bench for a pipeline; raise `ValueError` if its window is below 2 s or its rate below 8 kHz."""
        rate = pipe.vae.config.sampling_rate
        window = pipe.window_samples / rate
        if window < SHORTEST_WINDOW:
            raise ValueError(f"the model's window must be at least {SHORTEST_WINDOW:g} s, got {window:.4g} s")
        if rate < 8000:
            raise ValueError(f"the model's sampling rate must be at least 8000 Hz, got {rate}")
        prompt_seconds = pipe.conditioner.config.audio_prompt_samples / rate
        seconds = min(LONGEST, int(window * 10) / 10)
        channels = pipe.vae.config.audio_channels
        return cls(rate, channels, seconds, pipe.video_fps, prompt_seconds, count, recordings)

    # Scenes

    def one_class(self, index: int) -> Scene:
        """Return a scene with one to three events of one class. The classes alternate."""
        return self._scene(ONE_CLASS, index, max_events=3, classes=[CLASSES[index % len(CLASSES)]])

    def two_classes(self, index: int) -> Scene:
        """Return a scene with events of one class, then of another: two to four in all."""
        classes = np.random.default_rng([BENCH_SEED, index]).choice(CLASSES, 2, replace=False).tolist()
        return self._scene(TWO_CLASSES, index, classes=classes, accept=lambda scene: len(order(scene)) == 2)

    def mixed(self, index: int) -> Scene:
        """Return a scene with one to four events of any classes."""
        return self._scene(MIXED, index)

    def lasting(self, index: int) -> Scene:
        """Return a scene with one sound from start to end. The classes alternate."""
        name = sorted(LASTING)[index % len(LASTING)]
        return Scene([Event(name, 0.0, self.seconds)], self.seconds, scene_seed(BENCH_SEED + FULL, index))

    def _scene(
        self,
        kind: int,
        index: int,
        max_events: int = 4,
        classes: list[str] | None = None,
        accept: Callable[[Scene], bool] = lambda scene: True,
    ) -> Scene:
        """Return the first random scene of this kind and index that is countable and accepted."""
        for attempt in count():
            seed = scene_seed(BENCH_SEED + kind, ATTEMPTS * index + attempt)
            scene = random_scene(seed, self.seconds, max_events, classes)
            if is_countable(scene) and accept(scene):
                return scene

    # Inputs of the model

    def render(self, scene: Scene) -> np.ndarray:
        """Render the sound of a scene in the model's format, float32 `[channels, seconds * sampling_rate]`."""
        rate = render_rate(self.sampling_rate)
        sound = torch.from_numpy(scene.audio(rate, self.channels, self.recordings))
        return resample_audio(sound, rate, self.sampling_rate)[:, : round(scene.seconds * self.sampling_rate)].numpy()

    def preprocess(self, sound: np.ndarray) -> np.ndarray:
        """Convert a sound at the model's rate to the form that all metrics use."""
        return preprocess(sound, self.sampling_rate)

    def frames(self, scene: Scene) -> np.ndarray:
        """Return the video of a scene as read from a file, uint8 `[frames, 96, 96, 3]` at `video_fps`."""
        frames = scene.frames(PICTURE_FPS)
        times = np.arange(round(scene.seconds * self.video_fps)) / self.video_fps
        return frames[np.minimum((times * PICTURE_FPS + 1e-6).astype(int), len(frames) - 1)]

    @cached_property
    def classifier(self) -> SoundClassifier:
        """Classifier trained on single sounds at the model's rate, which are in no scene of the bench."""
        if self.recordings is None:
            return _synthetic_classifier(self.sampling_rate)
        return train_classifier(self._template)

    def _template(self, name: str, index: int) -> np.ndarray:
        seed = scene_seed(BENCH_SEED + TEMPLATES, ATTEMPTS * CLASSES.index(name) + index)
        rng = np.random.default_rng(seed)
        start = rng.uniform(0, 0.3)
        duration = IMPACT_SECONDS[name] if name in IMPACTS else rng.uniform(0.4, 3)
        return self.preprocess(self.render(Scene([Event(name, start, duration)], start + duration, seed)))

    # Items

    @cached_property
    def captions(self) -> list[Item]:
        """Captions of scenes, three fifths with one class and the rest with two."""
        ones = max(1, round(0.6 * self.count))
        scenes = [self.one_class(index) for index in range(ones)]
        scenes += [self.two_classes(index) for index in range(self.count - ones)]
        return [Item(scene, index, prompt=scene.caption()) for index, scene in enumerate(scenes)]

    @cached_property
    def swapped_captions(self) -> list[Item]:
        """A copy of each caption with other class words: its two classes exchanged, or its one class replaced."""
        swapped = []
        for item in self.captions:
            names = order(item.scene)
            if len(names) == 1:
                others = [name for name in CLASSES if name not in names]
                names = [*names, others[item.noise // len(CLASSES) * 3 % len(others)]]
            swap = dict(zip(names, reversed(names)))
            events = [Event(swap[event.sound], event.start, event.duration) for event in item.scene.events]
            scene = Scene(events, item.scene.seconds, item.scene.seed)
            swapped.append(Item(scene, item.noise, prompt=scene.caption()))
        return swapped

    @cached_property
    def scenes(self) -> list[Scene]:
        """Scenes for the tasks "video" and "missing"."""
        return [self.mixed(index) for index in range(self.count)]

    @cached_property
    def scenes_by_text(self) -> list[Item]:
        """The captions of `scenes`."""
        return [Item(scene, index, prompt=scene.caption()) for index, scene in enumerate(self.scenes)]

    @cached_property
    def scenes_by_video(self) -> list[Item]:
        """The videos of `scenes`."""
        return [Item(scene, index, video=self.frames(scene)) for index, scene in enumerate(self.scenes)]

    @cached_property
    def scenes_by_both(self) -> list[Item]:
        """The captions and videos of `scenes`."""
        return [replace(item, prompt=item.scene.caption()) for item in self.scenes_by_video]

    @cached_property
    def pictures(self) -> list[Item]:
        """Stills of scenes with one class."""
        scenes = [self.one_class(index) for index in range(self.count)]
        return [Item(scene, index, image=scene.picture()) for index, scene in enumerate(scenes)]

    @cached_property
    def completions(self) -> list[Item]:
        """Audio prompts to continue, of one class each."""
        before = replace(self, seconds=self.prompt_seconds)
        # Scenes that the model should not generate, of the same classes.
        first = math.ceil(self.count / len(CLASSES)) * len(CLASSES)
        items = []
        for index in range(self.half):
            prompt = before.one_class(first + index)
            items.append(Item(self.one_class(index), index, audio=(self.render(prompt), self.sampling_rate)))
        return items

    @cached_property
    def inpaintings(self) -> list[Item]:
        """Lasting sounds with a gap to fill."""
        items = []
        for index in range(self.half):
            scene = self.lasting(index)
            known = min(self.seconds, self.prompt_seconds)
            start, end = (round(share * known, 2) for share in GAP)
            sound = self.render(scene)[:, : round(known * self.sampling_rate)]
            sound[:, round(start * self.sampling_rate) : round(end * self.sampling_rate)] = 0
            items.append(Item(scene, index, audio=(sound, self.sampling_rate), gap=(start, end)))
        return items

    @cached_property
    def silences_by_text(self) -> list[Item]:
        """The captions of scenes without events: a quarter of `count`, at least one."""
        return [Item(scene, index, prompt=scene.caption()) for index, scene in enumerate(self._empty_scenes)]

    @cached_property
    def silences_by_video(self) -> list[Item]:
        """The videos of the same scenes."""
        return [Item(scene, index, video=self.frames(scene)) for index, scene in enumerate(self._empty_scenes)]

    @cached_property
    def _empty_scenes(self) -> list[Scene]:
        return [Scene([], self.seconds, index) for index in range(max(1, self.count // 4))]

    @property
    def half(self) -> int:
        """Half of `count`, at least one: number of completions and of inpaintings."""
        return max(1, self.count // 2)


@lru_cache(maxsize=4)
def _synthetic_classifier(sampling_rate: int) -> SoundClassifier:
    """Return the classifier for a rate, cached: training it takes seconds."""
    bench = Bench(sampling_rate, 1, seconds=LONGEST, video_fps=1.0, prompt_seconds=LONGEST, count=1)
    return train_classifier(bench._template)


def render_rate(sampling_rate: int) -> int:
    """Return the rate at which scenes are rendered for a model: synthesis needs at least 16 kHz."""
    return max(sampling_rate, LOWEST_SAMPLING_RATE)


def order(scene: Scene) -> list[str]:
    """Return the classes of a scene in order, without repetitions, as its caption names them."""
    return [name for name, _ in groupby(event.sound for event in scene.events)]


def is_countable(scene: Scene) -> bool:
    """Return whether there are at least 0.3 s between two neighbouring events of one class."""
    return all(
        after.sound != event.sound or after.start - event.start - event.duration >= SMALLEST_REST
        for event, after in zip(scene.events, scene.events[1:])
    )
