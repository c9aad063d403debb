"""Prompts of a call: split, broadcast and checked once."""

import pytest
import torch

from audiox_diffusers.pipelines.prompts import VIDEO_PROMPT, Prompts


def test_a_single_item_goes_with_each_item_of_a_list():
    prompts = Prompts.collect(prompt=["rain", None], video="clip.mp4", num_waveforms_per_prompt=2)
    assert len(prompts) == 4
    assert prompts.text == ["rain", "rain", None, None]
    assert prompts.video == ["clip.mp4"] * 4
    assert prompts.image == prompts.audio == prompts.text_embeds == [None] * 4


def test_a_timed_prompt_is_one_item():
    timed = [(0, 1, "rain"), (1, 2, None)]
    assert Prompts.collect(prompt=timed).text == [timed]
    prompts = Prompts.collect(prompt=["wind", timed])
    assert prompts.text == ["wind", timed]
    assert prompts.is_timed and not Prompts.collect(prompt="wind").is_timed


def test_contexts_count_as_prompts():
    embeds = torch.arange(6.0).view(2, 1, 3)
    prompts = Prompts.collect(condition_embeds=embeds, num_waveforms_per_prompt=2)
    assert len(prompts) == 4
    assert prompts.condition_embeds[:, 0, 0].tolist() == [0, 0, 3, 3]


def test_text_without_a_prompt():
    prompts = Prompts.collect(prompt=["rain", None, None], video=[None, "clip.mp4", None], audio="sound.wav")
    assert [prompts.text_or_default(i, text) for i, text in enumerate(prompts.text)] == ["rain", VIDEO_PROMPT, ""]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prompt": ["a", "b"], "video": ["x.mp4"] * 3}, "equally long: `prompt` has 2, `video` has 3"),
        ({"prompt": ["a", None]}, "sample 1 has none"),
        ({"negative_prompt": "a"}, "Give at least one of `prompt`"),
        ({"prompt": "a", "num_waveforms_per_prompt": 1.5}, "`num_waveforms_per_prompt` must be a whole number"),
        ({"prompt": "a", "negative_prompt": "", "negative_condition_embeds": torch.ones(1, 2, 3)}, "leave them out"),
        ({"prompt": "a", "negative_prompt": ""} | {"negative_prompt_embeds": torch.ones(1, 2, 3)}, "not both"),
        ({"video": ["x.mp4", None], "image": ["x.png", "y.png"]}, "either `video` or `image`"),
    ],
)
def test_what_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Prompts.collect(**kwargs)
