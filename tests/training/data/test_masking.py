import math
from collections import Counter
from itertools import chain, combinations

import pytest
import torch
from helpers import seeded

from audiox_diffusers.training.data.masking import (
    TASKS,
    MaskingConfig,
    TaskSpec,
    draw_masks,
    draw_task_spec,
    mask_audio_latents,
)

EVERYTHING = frozenset({"caption", "video", "image", "previous"})
SUBSETS = [frozenset(some) for some in chain.from_iterable(combinations(sorted(EVERYTHING), n) for n in range(5))]
KEEP_ALL = dict.fromkeys(
    ("drop_text_rate", "drop_video_rate", "drop_audio_rate", "drop_context_rate", "mask_text_rate", "mask_video_rate"),
    0.0,
)
RATES = (*KEEP_ALL, "audio_mask_min", "audio_mask_max")
DRAWS = 4000


def task_specs(
    config: MaskingConfig, available=EVERYTHING, task: str | None = None, count: int = DRAWS
) -> list[TaskSpec]:
    """Draw a task spec for each seed."""
    return [draw_task_spec(config, frozenset(available), seeded(seed), task) for seed in range(count)]


def assert_share(hits: int, count: int, share: float) -> None:
    """Check that the share of hits in `count` independent draws is `share`, within four standard deviations."""
    assert abs(hits - share * count) <= 4 * math.sqrt(share * (1 - share) * count), f"{hits} of {count}, not {share}"


# Modalities that each task requires, and those it uses when all are there: text, video, image, audio.
NEEDS = {
    "text": {"caption"},
    "video": {"video"},
    "text_video": {"caption", "video"},
    "image": {"image"},
    "inpainting": set(),
    "completion": {"previous"},
}
USES = {
    "text": (True, False, False, None),
    "video": (False, True, False, None),
    "text_video": (True, True, False, None),
    "image": (True, False, True, None),
    "inpainting": (True, True, False, "target"),
    "completion": (True, True, False, "previous"),
}


def test_the_tasks():
    assert TASKS == ("text", "video", "text_video", "image", "inpainting", "completion")


@pytest.mark.parametrize("available", SUBSETS, ids=lambda available: "+".join(sorted(available)))
def test_possible_tasks(available):
    possible = {task for task in TASKS if NEEDS[task] <= available}
    assert {task_spec.task for task_spec in task_specs(MaskingConfig(), available, count=200)} == possible
    for task in TASKS:
        if task in possible:
            assert draw_task_spec(MaskingConfig(), available, seeded(0), task).task == task
        else:
            missing = " and ".join(sorted(NEEDS[task]))
            with pytest.raises(ValueError, match=f"`task` '{task}' needs {missing}"):
                draw_task_spec(MaskingConfig(), available, seeded(0), task)


@pytest.mark.parametrize("task", TASKS)
def test_modalities_of_a_task(task):
    for task_spec in task_specs(MaskingConfig(**KEEP_ALL), task=task, count=50):
        assert (task_spec.text, task_spec.video, task_spec.image, task_spec.audio) == USES[task]
        assert (task_spec.audio_span is not None) == (task_spec.audio == "target")
        assert not task_spec.drop_context


@pytest.mark.parametrize("available", SUBSETS, ids=lambda available: "+".join(sorted(available)))
def test_a_task_spec_uses_only_available_modalities(available):
    for task_spec in task_specs(MaskingConfig(**KEEP_ALL), available, count=50):
        text, video, image, audio = USES[task_spec.task]
        assert task_spec.text == (text and "caption" in available)
        assert task_spec.video == (video and "video" in available)
        assert task_spec.image == (image and "image" in available)
        assert task_spec.audio == audio


def test_tasks_are_drawn_by_weight():
    weights = {"text": 1.0, "video": 0.0, "text_video": 2.0, "image": 0.5, "inpainting": 4.0, "completion": 0.5}
    drawn = Counter(task_spec.task for task_spec in task_specs(MaskingConfig(task_weights=weights)))
    for task, weight in weights.items():
        assert_share(drawn[task], DRAWS, weight / 8)


def test_weights_among_possible_tasks():
    weights = {"text": 1.0, "inpainting": 3.0, "completion": 100.0}
    drawn = Counter(
        task_spec.task for task_spec in task_specs(MaskingConfig(task_weights=weights), {"caption", "video"})
    )
    assert set(drawn) == {"text", "inpainting"}, "a task without a weight was drawn"
    assert_share(drawn["text"], DRAWS, 1 / 4)


def test_tasks_have_equal_weights_by_default():
    drawn = Counter(task_spec.task for task_spec in task_specs(MaskingConfig()))
    for task in TASKS:
        assert_share(drawn[task], DRAWS, 1 / 6)


def test_a_given_task_needs_no_weight():
    config = MaskingConfig(task_weights={"text": 1.0})
    assert draw_task_spec(config, EVERYTHING, seeded(0), "completion").task == "completion"


def test_no_task_is_possible():
    config = MaskingConfig(task_weights={"text": 1.0, "image": 1.0})
    with pytest.raises(ValueError, match=r"`task_weights` are 0 .*\(video, inpainting\): the sample has video"):
        draw_task_spec(config, frozenset({"video"}), seeded(0))
    with pytest.raises(ValueError, match="the sample has only sound"):
        draw_task_spec(config, frozenset(), seeded(0))


@pytest.mark.parametrize("task", ["music", "", 3, ["text"]])
def test_unknown_task(task):
    with pytest.raises(ValueError, match="`task` must be one of text, video, .*, got"):
        draw_task_spec(MaskingConfig(), EVERYTHING, seeded(0), task)


def test_modalities_are_dropped_at_their_rates():
    config = MaskingConfig(drop_text_rate=0.1, drop_video_rate=0.3, drop_audio_rate=0.6, drop_context_rate=0.2)
    drawn = task_specs(config, task="completion")
    text, video, audio, context = (
        [not task_spec.text for task_spec in drawn],
        [not task_spec.video for task_spec in drawn],
        [task_spec.audio is None for task_spec in drawn],
        [task_spec.drop_context for task_spec in drawn],
    )
    for dropped, rate in ((text, 0.1), (video, 0.3), (audio, 0.6), (context, 0.2)):
        assert_share(sum(dropped), DRAWS, rate)
    # The draws are independent, so both happen at the product of the rates.
    assert_share(sum(a and b for a, b in zip(text, video)), DRAWS, 0.03)
    assert_share(sum(a and b for a, b in zip(video, audio)), DRAWS, 0.18)
    assert_share(sum(a and b for a, b in zip(text, context)), DRAWS, 0.02)


def test_pictures_are_dropped_at_the_rate_of_videos():
    drawn = task_specs(MaskingConfig(drop_video_rate=0.3, drop_text_rate=0.0), task="image")
    assert_share(sum(not task_spec.image for task_spec in drawn), DRAWS, 0.3)
    assert all(task_spec.text for task_spec in drawn)


def test_rates_of_one():
    dropped = {name: 1.0 for name in KEEP_ALL if name.startswith("drop")}
    for task in TASKS:
        for task_spec in task_specs(MaskingConfig(**dropped), task=task, count=20):
            assert not (task_spec.text or task_spec.video or task_spec.image)
            assert task_spec.audio is None and task_spec.audio_span is None
            assert task_spec.drop_context


def test_span_of_the_audio_prompt():
    config = MaskingConfig(drop_audio_rate=0.0, audio_mask_min=0.2, audio_mask_max=0.6)
    spans = torch.tensor(
        [task_spec.audio_span for task_spec in task_specs(config, task="inpainting")], dtype=torch.float64
    )
    start, end = spans.unbind(1)
    share = end - start
    assert (start >= 0).all() and (end <= 1).all()
    assert (share > 0.2 - 1e-9).all() and (share < 0.6 + 1e-9).all()
    # Both the length and the position of a span are uniform.
    for uniform in ((share - 0.2) / 0.4, start / (1 - share)):
        counts = torch.histc(uniform, 4, 0, 1).tolist()
        for count in counts:
            assert_share(count, DRAWS, 1 / 4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_span_of_one_length(share):
    config = MaskingConfig(drop_audio_rate=0.0, audio_mask_min=share, audio_mask_max=share)
    for task_spec in task_specs(config, task="inpainting", count=100):
        start, end = task_spec.audio_span
        assert end - start == pytest.approx(share)
        assert 0 <= start <= end <= 1


def test_choice_of_a_caption():
    drawn = task_specs(MaskingConfig())
    chosen = Counter(int(task_spec.caption * 5) for task_spec in drawn)
    assert set(chosen) == set(range(5))
    for number in range(5):
        assert_share(chosen[number], DRAWS, 1 / 5)


def test_a_task_spec_depends_on_the_seed_alone():
    assert task_specs(MaskingConfig(), count=50) == task_specs(MaskingConfig(), count=50)
    assert len({task_spec.caption for task_spec in task_specs(MaskingConfig(), count=50)}) == 50
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw_task_spec(MaskingConfig(), EVERYTHING, seeded(5)), *draw_masks(MaskingConfig(), seeded(5), 8, 4, 6)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = draw_task_spec(MaskingConfig(), EVERYTHING, seeded(5)), *draw_masks(MaskingConfig(), seeded(5), 8, 4, 6)
    assert again[0] == first[0] and torch.equal(again[1], first[1]) and torch.equal(again[2], first[2])


def test_the_number_of_draws_is_fixed():
    """Later draws do not change with the task or with another rate."""
    config = MaskingConfig(drop_context_rate=0.5)
    dropped = MaskingConfig(drop_text_rate=1.0, drop_video_rate=1.0, drop_audio_rate=1.0, drop_context_rate=0.5)
    cases = [(config, EVERYTHING, task) for task in (None, *TASKS)]
    cases += [(config, frozenset(), None), (dropped, EVERYTHING, None)]
    for seed in range(20):
        outcomes = set()
        for case in cases:
            generator = seeded(seed)
            task_spec = draw_task_spec(*case[:2], generator, case[2])
            outcomes.add((task_spec.caption, task_spec.drop_context, torch.rand((), generator=generator).item()))
        assert len(outcomes) == 1


def test_masks():
    config = MaskingConfig(mask_text_rate=0.1, mask_video_rate=0.4)
    masks = [draw_masks(config, seeded(seed), 16, 5, 7) for seed in range(500)]
    text, video = (torch.stack(mask) for mask in zip(*masks))
    assert text.shape == (500, 16) and video.shape == (500, 5, 7)
    assert text.dtype == video.dtype == torch.float32
    for mask, rate in ((text, 0.1), (video, 0.4)):
        assert set(mask.unique().tolist()) == {0, 1}
        assert_share(int((mask == 0).sum()), mask.numel(), rate)
        # Neighbors are independent.
        assert_share(int(((mask[..., 1:] == 0) & (mask[..., :-1] == 0)).sum()), mask[..., 1:].numel(), rate**2)
    assert_share(int(((video[:, 1:] == 0) & (video[:, :-1] == 0)).sum()), video[:, 1:].numel(), 0.16)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_masks_at_the_ends_of_the_rates(rate):
    text, video = draw_masks(MaskingConfig(mask_text_rate=rate, mask_video_rate=1 - rate), seeded(0), 64, 16, 16)
    assert text.unique().tolist() == [1 - rate]
    assert video.unique().tolist() == [rate]


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0.0, 1.0), [0] * 10),
        ((0.3, 0.3), list(range(1, 11))),
        ((0.26, 0.74), [1, 2, 3, 0, 0, 0, 0, 8, 9, 10]),
        ((0.5, 1.0), [1, 2, 3, 4, 5, 0, 0, 0, 0, 0]),
    ],
)
def test_mask_audio_latents(span, expected):
    latents = torch.stack((torch.arange(1.0, 11), -torch.arange(1.0, 11)))
    silence = torch.zeros(2, 10)
    assert mask_audio_latents(latents, silence, span).tolist() == [expected, [-value for value in expected]]
    assert latents[0].tolist() == list(range(1, 11)), "the input was changed"


def test_a_masked_span_takes_the_same_positions_of_silence():
    latents, silence = torch.zeros(1, 4), torch.tensor([[1.0, 2, 3, 4]])
    assert mask_audio_latents(latents, silence, (0.25, 0.75)).tolist() == [[0, 2, 3, 0]]


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_rates_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"--{name} must be in 0..1, got {value}"):
        MaskingConfig(**{name: value})


def test_rates_at_the_ends_of_the_range():
    for value in (0.0, 1.0):
        MaskingConfig(**dict.fromkeys(RATES, value))


@pytest.mark.parametrize("weights", [{"music": 1.0}, {"text": -1.0}, {"text": math.inf}, {"text": math.nan}, {}])
def test_weights_out_of_range(weights):
    with pytest.raises(ValueError, match="--task_weights"):
        MaskingConfig(task_weights=weights)


def test_weights_that_are_all_zero():
    with pytest.raises(ValueError, match="--task_weights must have a weight above 0"):
        MaskingConfig(task_weights=dict.fromkeys(TASKS, 0.0))


def test_audio_mask_min_above_max():
    with pytest.raises(ValueError, match="--audio_mask_min must be at most --audio_mask_max, got 0.8 and 0.75"):
        MaskingConfig(audio_mask_min=0.8)
