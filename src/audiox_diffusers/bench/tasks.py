"""Metrics of each task."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..media import log_mel_distance
from ..scenes import Scene
from .features import FRAME, RATE, SILENCE, cut, frame_levels, is_silent
from .items import Bench, Item, order
from .onsets import detect_onsets, onset_f1
from .scores import Score, accuracy, compare_with_others, mean

MARGIN = 0.1  # seconds around an event that do not count as rest

Sounds = Sequence[np.ndarray]  # preprocessed


class Task(NamedTuple):
    """
    Attributes:
        requests: Names of the lists of [`Bench`] to generate sounds for.
        score: Function of the bench and the sounds of each list that returns scores by name.
        headlines: Names of the most important scores.
    """

    requests: tuple[str, ...]
    score: Callable[..., dict[str, Score]]
    headlines: tuple[str, ...]


def score_text(bench: Bench, sounds: Sounds, swapped: Sounds) -> dict[str, Score]:
    """
    - class: For captions with one class, the whole sound has this class; for captions with two, the events have these
      two classes and no other. Also for captions with one and with two classes alone.
    - order: For captions with two classes, all events of one class come before those of the other, as the caption says.
    - count: There are as many events as the caption says.
    - swap: For a caption and its copy with other class words, both sounds have the right classes in the right order.
    """
    scenes = [item.scene for item in bench.captions]
    names = [order(scene) for scene in scenes]
    swaps = [order(item.scene) for item in bench.swapped_captions]
    answers = [_detect_order(bench, sound, len(truth)) for sound, truth in zip(sounds, names)]
    swap_answers = [_detect_order(bench, sound, len(truth)) for sound, truth in zip(swapped, swaps)]
    scores = {"class": accuracy([set(answer) for answer in answers], [set(truth) for truth in names])}
    for name, number in (("class, one", 1), ("class, two", 2)):
        chosen = [index for index, truth in enumerate(names) if len(truth) == number]
        if chosen:
            scores[name] = accuracy([set(answers[i]) for i in chosen], [set(names[i]) for i in chosen])
    if chosen:
        scores["order"] = accuracy([answers[i] for i in chosen], [names[i] for i in chosen])
    counts = [len(bench.classifier.detect_events(sound)) for sound in sounds]
    scores["count"] = accuracy(counts, [len(scene.events) for scene in scenes])
    scores["swap"] = accuracy(list(zip(answers, swap_answers)), list(zip(names, swaps)))
    return scores


def _detect_order(bench: Bench, sound: np.ndarray, number: int) -> list[str]:
    """Return the class of the whole sound if `number` is 1, else the classes of its events in order."""
    if number == 1:
        return [bench.classifier.classify(sound)]
    return _without_repetitions(bench.classifier.detect_events(sound))


def _without_repetitions(events: list[tuple[str, float]]) -> list[str]:
    return [name for name, _ in groupby(name for name, _ in events)]


def score_video(bench: Bench, sounds: Sounds) -> dict[str, Score]:
    """
    - onset F1: F1 of detected and true onsets within 0.1 s.
    - class: Share of events whose class is heard while they last.
    - order: The classes come in the right order.
    - count: There are as many events as in the scene.
    - rest: Share of the time without events, 0.1 s away from all of them, that is silent.
    """
    scenes = bench.scenes
    detected = [bench.classifier.detect_events(sound) for sound in sounds]
    return {
        "onset F1": _score_onsets(sounds, scenes),
        "class": _score_events(bench, sounds, scenes),
        "order": accuracy([_without_repetitions(events) for events in detected], [order(scene) for scene in scenes]),
        "count": accuracy([len(events) for events in detected], [len(scene.events) for scene in scenes]),
        "rest": compare_with_others(_share_of_rest, sounds, scenes),
    }


def _score_onsets(sounds: Sounds, scenes: list[Scene]) -> Score:
    onsets = [detect_onsets(sound) for sound in sounds]
    return compare_with_others(onset_f1, onsets, [[event.start for event in scene.events] for scene in scenes])


def _score_events(bench: Bench, sounds: Sounds, scenes: list[Scene]) -> Score:
    """Score the class of each event; by chance, in the sound of the next scene."""

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
        quiet = frame_levels(sound) <= SILENCE
        times = np.arange(len(quiet)) * FRAME
        rest = np.full(len(quiet), True)
        for event in scene.events:
            rest &= (times + FRAME <= event.start - MARGIN) | (times >= event.start + event.duration + MARGIN)
        silent, total = silent + int((quiet & rest).sum()), total + int(rest.sum())
    return silent / total if total else 1.0


def score_missing(bench: Bench, by_text: Sounds, by_video: Sounds, by_both: Sounds) -> dict[str, Score]:
    """Return F1 of classes and of onsets for the same scenes by text, by video and by both."""
    scores = {}
    for name, sounds in (("text", by_text), ("video", by_video), ("both", by_both)):
        classes = [{label for label, _ in bench.classifier.detect_events(sound)} for sound in sounds]
        truths = [set(order(scene)) for scene in bench.scenes]
        scores[f"classes, {name}"] = compare_with_others(_set_f1, classes, truths)
        scores[f"onset F1, {name}"] = _score_onsets(sounds, bench.scenes)
    return scores


def _set_f1(pairs: list[tuple[set[str], set[str]]]) -> float:
    total = sum(len(detected) + len(true) for detected, true in pairs)
    return 2 * sum(len(detected & true) for detected, true in pairs) / total if total else 1.0


def score_image(bench: Bench, sounds: Sounds) -> dict[str, Score]:
    """- class: The sound has the class of the picture."""
    return {"class": _score_classes(bench, sounds, bench.pictures)}


def _score_classes(bench: Bench, sounds: Sounds, items: list[Item]) -> Score:
    return accuracy(
        [bench.classifier.classify(sound) for sound in sounds], [item.scene.events[0].sound for item in items]
    )


def score_audio(bench: Bench, continued: Sounds, filled: Sounds) -> dict[str, Score]:
    """
    - continued: The sound has the class of the audio prompt that it continues.
    - gap class: The sound in the gap has the class of the sound around it.
    - gap filled: Share of the gaps that is not silent.
    - around: Outside of the gap, the sound is closer in log-mel distance to its own prompt than to any other one.
    - distance: This log-mel distance; by chance, to other prompts.
    """
    items = bench.inpaintings
    gaps = [cut(sound, *item.gap) for sound, item in zip(filled, items)]
    outside = [_around_gap(sound, item) for sound, item in zip(filled, items)]
    prompts = [_around_gap(bench.preprocess(item.audio[0]), item) for item in items]
    distances = np.array([[log_mel_distance(sound, prompt, RATE) for prompt in prompts] for sound in outside])
    nearest = [int(index) for index in distances.argmin(axis=1)]
    return {
        "continued": _score_classes(bench, continued, bench.completions),
        "gap class": _score_classes(bench, gaps, items),
        "gap filled": Score(mean([float((frame_levels(gap) > SILENCE).mean()) for gap in gaps]), None, len(gaps)),
        "around": accuracy(nearest, list(range(len(items)))),
        "distance": compare_with_others(
            lambda pairs: mean([float(distances[pair]) for pair in pairs]), range(len(items)), range(len(items))
        ),
    }


def _around_gap(sound: np.ndarray, item: Item) -> np.ndarray:
    """Return the sound outside of the gap, up to the end of the prompt."""
    known = item.audio[0].shape[1] / item.audio[1]
    return np.concatenate((cut(sound, 0, item.gap[0]), cut(sound, item.gap[1], known)))


def score_silence(bench: Bench, by_text: Sounds, by_video: Sounds, sounding: Sounds) -> dict[str, Score]:
    """
    - text, video: The sound for the caption or the video of an empty scene is silent: no 50 ms are louder than -40 dB.
      By chance, the share of silent sounds for other captions.
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
