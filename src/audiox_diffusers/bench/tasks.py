"""What a model is asked to do, and how well it did."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..media import log_mel_distance
from ..scenes import Scene
from .hearing import MOMENT, RATE, SILENCE, cut, is_silent, moment_levels
from .items import Bench, Item, order
from .onsets import detect_onsets, onset_f1
from .scores import Score, against_others, mean, share_right

AROUND = 0.1  # seconds before and after an event that do not count as rest

Sounds = Sequence[np.ndarray]  # as `listen` gives them


class Task(NamedTuple):
    """
    Attributes:
        requests: names of the lists of [`Bench`] that are asked for.
        score: from the bench and the sounds of each of the lists to the scores, by name.
        headlines: names of the scores that tell most.
    """

    requests: tuple[str, ...]
    score: Callable[..., dict[str, Score]]
    headlines: tuple[str, ...]


def score_text(bench: Bench, sounds: Sounds, swapped: Sounds) -> dict[str, Score]:
    """
    - class: whether the sound as a whole is of the caption's class, or its events are of the two classes and no other;
      also for captions of one and of two classes alone.
    - order: of captions with two classes, whether one is heard first and then the other.
    - count: whether as many sounds begin as the caption tells.
    - swap: of pairs of captions that differ in the class words, whether for both the class is right, or the order.
    """
    scenes = [item.scene for item in bench.captions]
    names = [order(scene) for scene in scenes]
    swaps = [order(item.scene) for item in bench.swapped_captions]
    answers = [_hear_order(bench, sound, len(truth)) for sound, truth in zip(sounds, names)]
    swap_answers = [_hear_order(bench, sound, len(truth)) for sound, truth in zip(swapped, swaps)]
    scores = {"class": share_right([set(answer) for answer in answers], [set(truth) for truth in names])}
    for name, number in (("class, one", 1), ("class, two", 2)):
        chosen = [index for index, truth in enumerate(names) if len(truth) == number]
        if chosen:
            scores[name] = share_right([set(answers[i]) for i in chosen], [set(names[i]) for i in chosen])
    if chosen:
        scores["order"] = share_right([answers[i] for i in chosen], [names[i] for i in chosen])
    counts = [len(bench.classifier.hear(sound)) for sound in sounds]
    scores["count"] = share_right(counts, [len(scene.events) for scene in scenes])
    scores["swap"] = share_right(list(zip(answers, swap_answers)), list(zip(names, swaps)))
    return scores


def _hear_order(bench: Bench, sound: np.ndarray, number: int) -> list[str]:
    """The classes of a sound one after the other; where one is to be heard, that of the whole sound."""
    if number == 1:
        return [bench.classifier.classify(sound)]
    return [name for name, _ in groupby(name for name, _ in bench.classifier.hear(sound))]


def score_video(bench: Bench, sounds: Sounds) -> dict[str, Score]:
    """
    - onset F1: of the onsets that are heard and those of the scene, within 0.1 s.
    - class: the share of events during which their class is heard.
    - order: whether the classes are heard in order.
    - count: whether as many sounds begin as there are events.
    - rest: of the time when nothing happens, 0.1 s away from all events, the share that is silent.
    """
    scenes = bench.scenes
    heard = [bench.classifier.hear(sound) for sound in sounds]
    return {
        "onset F1": _score_onsets(sounds, scenes),
        "class": _score_events(bench, sounds, scenes),
        "order": share_right(
            [[name for name, _ in groupby(name for name, _ in answer)] for answer in heard],
            [order(scene) for scene in scenes],
        ),
        "count": share_right([len(answer) for answer in heard], [len(scene.events) for scene in scenes]),
        "rest": against_others(_share_of_rest, sounds, scenes),
    }


def _score_onsets(sounds: Sounds, scenes: list[Scene]) -> Score:
    onsets = [detect_onsets(sound) for sound in sounds]
    return against_others(onset_f1, onsets, [[event.start for event in scene.events] for scene in scenes])


def _score_events(bench: Bench, sounds: Sounds, scenes: list[Scene]) -> Score:
    """By chance, with the sound of the scene before."""

    def share(sounds: Sounds) -> float:
        spans = [(sound, event) for sound, scene in zip(sounds, scenes) for event in scene.events]
        return mean(
            [
                bench.classifier.classify(cut(sound, event.start, event.start + event.duration)) == event.sound
                for sound, event in spans
            ]
        )

    others = [*sounds[1:], sounds[0]]
    return Score(share(sounds), share(others) if len(sounds) > 1 else None, len(sounds))


def _share_of_rest(pairs: list[tuple[np.ndarray, Scene]]) -> float:
    silent = total = 0
    for sound, scene in pairs:
        quiet = moment_levels(sound) <= SILENCE
        times = np.arange(len(quiet)) * MOMENT
        rest = np.full(len(quiet), True)
        for event in scene.events:
            rest &= (times + MOMENT <= event.start - AROUND) | (times >= event.start + event.duration + AROUND)
        silent, total = silent + int((quiet & rest).sum()), total + int(rest.sum())
    return silent / total if total else 1.0


def score_missing(bench: Bench, by_text: Sounds, by_video: Sounds, by_both: Sounds) -> dict[str, Score]:
    """Class and onset F1, as of the task video, of the same scenes by text alone, by video alone and by both."""
    scores = {}
    for name, sounds in (("text", by_text), ("video", by_video), ("both", by_both)):
        classes = [{label for label, _ in bench.classifier.hear(sound)} for sound in sounds]
        scores[f"classes, {name}"] = against_others(_set_f1, classes, [set(order(scene)) for scene in bench.scenes])
        scores[f"onset F1, {name}"] = _score_onsets(sounds, bench.scenes)
    return scores


def _set_f1(pairs: list[tuple[set[str], set[str]]]) -> float:
    total = sum(len(found) + len(true) for found, true in pairs)
    return 2 * sum(len(found & true) for found, true in pairs) / total if total else 1.0


def score_image(bench: Bench, sounds: Sounds) -> dict[str, Score]:
    """- class: whether the sound is of the picture's class."""
    return {"class": _score_classes(bench, sounds, bench.pictures)}


def _score_classes(bench: Bench, sounds: Sounds, items: list[Item]) -> Score:
    return share_right(
        [bench.classifier.classify(sound) for sound in sounds], [item.scene.events[0].sound for item in items]
    )


def score_audio(bench: Bench, continued: Sounds, filled: Sounds) -> dict[str, Score]:
    """
    - continued: whether the sound is of the class of the one before it.
    - gap class: whether what fills the gap is of the class of what is around it.
    - gap filled: the share of the gaps that is not silent.
    - around: whether outside of the gap the sound is nearer, by log-mel distance, to its own prompt than to that of
      any other item.
    - distance: that log-mel distance; by chance, that to other prompts.
    """
    items = bench.inpaintings
    gaps = [cut(sound, *item.gap) for sound, item in zip(filled, items)]
    outside = [_around(sound, item) for sound, item in zip(filled, items)]
    prompts = [_around(bench.listen(item.audio[0]), item) for item in items]
    distances = np.array([[log_mel_distance(sound, prompt, RATE) for prompt in prompts] for sound in outside])
    nearest = [int(index) for index in distances.argmin(axis=1)]
    return {
        "continued": _score_classes(bench, continued, bench.completions),
        "gap class": _score_classes(bench, gaps, items),
        "gap filled": Score(mean([float((moment_levels(gap) > SILENCE).mean()) for gap in gaps]), None, len(gaps)),
        "around": share_right(nearest, list(range(len(items)))),
        "distance": against_others(
            lambda pairs: mean([float(distances[pair]) for pair in pairs]), range(len(items)), range(len(items))
        ),
    }


def _around(sound: np.ndarray, item: Item) -> np.ndarray:
    """What is heard outside of the gap, as far as the prompt goes."""
    known = item.audio[0].shape[1] / item.audio[1]
    return np.concatenate((cut(sound, 0, item.gap[0]), cut(sound, item.gap[1], known)))


def score_silence(bench: Bench, by_text: Sounds, by_video: Sounds, sounding: Sounds) -> dict[str, Score]:
    """
    - text, video: whether for a caption or a video of nothing the sound is silent: no 50 ms of it louder than -40 dB.
      By chance, how often that is so for captions of sounds.
    """
    chance = mean([is_silent(sound) for sound in sounding])
    return {
        name: Score(mean([is_silent(sound) for sound in sounds]), chance, len(sounds))
        for name, sounds in (("text", by_text), ("video", by_video))
    }


TASKS = {
    "text": Task(("captions", "swapped_captions"), score_text, ("class", "swap")),
    "video": Task(("scenes_by_video",), score_video, ("onset F1", "class")),
    "image": Task(("pictures",), score_image, ("class",)),
    "audio": Task(("completions", "inpaintings"), score_audio, ("continued", "gap class")),
    "silence": Task(("silences_by_text", "silences_by_video", "captions"), score_silence, ("text", "video")),
    "missing": Task(
        ("scenes_by_text", "scenes_by_video", "scenes_by_both"), score_missing, ("classes, both", "onset F1, both")
    ),
}
