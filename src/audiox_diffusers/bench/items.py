"""What the bench asks a model for: scenes with known answers, in the form that the model takes."""

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
from .classifier import CLASSES, SoundClassifier, learn_classifier
from .hearing import listen

# Scenes of the bench are those of `write_scenes(folder, n, seed)` with a seed from here to 4 above. Nothing is to be
# trained on them.
BENCH_SEED = 9_000_000

# Numbers that are added to it for scenes of each kind.
ONE_CLASS, TWO_CLASSES, MIXED, FULL, TEMPLATES = range(5)

SHORTEST_WINDOW = 2.0  # seconds
LONGEST = 10.0  # seconds of sound, as a pipeline makes by default
PICTURE_FPS = 25  # of the videos that frames are taken from
GAP = (0.4, 0.65)  # of an audio prompt, to be filled
ATTEMPTS = 1000  # at a scene that is as it should be
SMALLEST_REST = 0.3  # seconds between sounds of one class, so that they are heard as two


@dataclass(frozen=True, eq=False)
class Item:
    """
    A request for a sound.

    Attributes:
        scene: what is to be heard.
        noise: which of the noises of a seed the sound begins with.
        prompt, video, image, audio: as the pipeline takes them; what is not given is `None`.
        gap: seconds from start to end that are silenced in `audio`, if any.
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
    Scenes in the form that a model takes, and the ears to judge what it makes of them. Scenes, requests and classifier
    depend on these attributes alone; each is made once.

    Attributes:
        sampling_rate: of the model's sound, in Hz.
        channels: of the model's sound.
        seconds: length of the sounds to make.
        video_fps: frames a second of the model's video.
        prompt_seconds: length of the model's audio prompt.
        count: items of each task.
        recordings: in the place of synthesised sounds, at `render_rate(sampling_rate)`.
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
        """The bench for a pipeline; `ValueError` if its window is below 2 s or its rate below 8 kHz."""
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
        """One to three sounds of one class; the classes take turns."""
        return self._scene(ONE_CLASS, index, max_events=3, classes=[CLASSES[index % len(CLASSES)]])

    def two_classes(self, index: int) -> Scene:
        """Sounds of one class, then of another: two to four."""
        classes = np.random.default_rng([BENCH_SEED, index]).choice(CLASSES, 2, replace=False).tolist()
        return self._scene(TWO_CLASSES, index, classes=classes, accept=lambda scene: len(order(scene)) == 2)

    def mixed(self, index: int) -> Scene:
        """One to four sounds of any classes."""
        return self._scene(MIXED, index)

    def lasting(self, index: int) -> Scene:
        """One lasting sound from start to end; the classes take turns."""
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
        """The first random scene of its kind and index that can be told by ear, and is to be accepted."""
        for attempt in count():
            seed = scene_seed(BENCH_SEED + kind, ATTEMPTS * index + attempt)
            scene = random_scene(seed, self.seconds, max_events, classes)
            if is_countable(scene) and accept(scene):
                return scene

    # Their forms

    def render(self, scene: Scene) -> np.ndarray:
        """The sound of a scene as the model would make it, float32 `[channels, seconds * sampling_rate]`."""
        rate = render_rate(self.sampling_rate)
        sound = torch.from_numpy(scene.audio(rate, self.channels, self.recordings))
        return resample_audio(sound, rate, self.sampling_rate)[:, : round(scene.seconds * self.sampling_rate)].numpy()

    def listen(self, sound: np.ndarray) -> np.ndarray:
        """A sound at the model's rate, as all measures take it."""
        return listen(sound, self.sampling_rate)

    def frames(self, scene: Scene) -> np.ndarray:
        """The video of a scene as the model would see it in a file: uint8 `[frames, 96, 96, 3]` at `video_fps`."""
        frames = scene.frames(PICTURE_FPS)
        times = np.arange(round(scene.seconds * self.video_fps)) / self.video_fps
        return frames[np.minimum((times * PICTURE_FPS + 1e-6).astype(int), len(frames) - 1)]

    @cached_property
    def classifier(self) -> SoundClassifier:
        """Learned from single sounds that are in no other scene of the bench, at the model's rate."""
        if self.recordings is None:
            return _synthetic_classifier(self.sampling_rate)
        return learn_classifier(self._template)

    def _template(self, name: str, index: int) -> np.ndarray:
        seed = scene_seed(BENCH_SEED + TEMPLATES, ATTEMPTS * CLASSES.index(name) + index)
        rng = np.random.default_rng(seed)
        start = rng.uniform(0, 0.3)
        duration = IMPACT_SECONDS[name] if name in IMPACTS else rng.uniform(0.4, 3)
        return self.listen(self.render(Scene([Event(name, start, duration)], start + duration, seed)))

    # Requests

    @cached_property
    def captions(self) -> list[Item]:
        """Captions of scenes of one class, three fifths of them, and of two."""
        ones = max(1, round(0.6 * self.count))
        scenes = [self.one_class(index) for index in range(ones)]
        scenes += [self.two_classes(index) for index in range(self.count - ones)]
        return [Item(scene, index, prompt=scene.caption()) for index, scene in enumerate(scenes)]

    @cached_property
    def swapped_captions(self) -> list[Item]:
        """For each caption the one with other class words: the two of it exchanged, or another one in its place."""
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
        """Those with text, video or both to ask for them by."""
        return [self.mixed(index) for index in range(self.count)]

    @cached_property
    def scenes_by_text(self) -> list[Item]:
        """Scenes, asked for by their captions."""
        return [Item(scene, index, prompt=scene.caption()) for index, scene in enumerate(self.scenes)]

    @cached_property
    def scenes_by_video(self) -> list[Item]:
        """The same scenes, asked for by their videos."""
        return [Item(scene, index, video=self.frames(scene)) for index, scene in enumerate(self.scenes)]

    @cached_property
    def scenes_by_both(self) -> list[Item]:
        """The same scenes, asked for by caption and video."""
        return [replace(item, prompt=item.scene.caption()) for item in self.scenes_by_video]

    @cached_property
    def pictures(self) -> list[Item]:
        """Stills of scenes of one class."""
        scenes = [self.one_class(index) for index in range(self.count)]
        return [Item(scene, index, image=scene.picture()) for index, scene in enumerate(scenes)]

    @cached_property
    def completions(self) -> list[Item]:
        """What came before: half as many as there are items, at least one, of one class each."""
        before = replace(self, seconds=self.prompt_seconds)
        items = []
        for index in range(self.half):
            prompt = before.one_class(self.count + index)  # others than those to be heard
            items.append(Item(self.one_class(index), index, audio=(self.render(prompt), self.sampling_rate)))
        return items

    @cached_property
    def inpaintings(self) -> list[Item]:
        """Lasting sounds with a gap in the middle: half as many as there are items, at least one."""
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
        """Scenes without events, a quarter as many as there are items, at least one, asked for by their captions."""
        return [Item(scene, index, prompt=scene.caption()) for index, scene in enumerate(self._empty_scenes)]

    @cached_property
    def silences_by_video(self) -> list[Item]:
        """The same, asked for by their videos."""
        return [Item(scene, index, video=self.frames(scene)) for index, scene in enumerate(self._empty_scenes)]

    @cached_property
    def _empty_scenes(self) -> list[Scene]:
        return [Scene([], self.seconds, index) for index in range(max(1, self.count // 4))]

    @property
    def half(self) -> int:
        """Half as many as there are items, at least one."""
        return max(1, self.count // 2)


@lru_cache(maxsize=4)
def _synthetic_classifier(sampling_rate: int) -> SoundClassifier:
    """Learning takes seconds, and while a model is trained it is measured again and again."""
    bench = Bench(sampling_rate, 1, seconds=LONGEST, video_fps=1.0, prompt_seconds=LONGEST, count=1)
    return learn_classifier(bench._template)


def render_rate(sampling_rate: int) -> int:
    """The rate that scenes are rendered at for a model of another."""
    return max(sampling_rate, LOWEST_SAMPLING_RATE)


def order(scene: Scene) -> list[str]:
    """The classes in the order in which they are heard, as a caption names them: repeated ones once."""
    return [name for name, _ in groupby(event.sound for event in scene.events)]


def is_countable(scene: Scene) -> bool:
    """Whether no sound is followed at once by one of its class, so that the two are heard as one."""
    return all(
        after.sound != event.sound or after.start - event.start - event.duration >= SMALLEST_REST
        for event, after in zip(scene.events, scene.events[1:])
    )
