"""The prompts of one call."""

from dataclasses import dataclass, field
from typing import Any

import torch

from .checks import MAX_WAVEFORMS, check_choice, check_count, check_tensor
from .inputs import split_batch
from .windows import TimedPrompt, check_timed_prompt, is_timed, split_prompts

VIDEO_PROMPT = "Generate general audio for the video"


@dataclass(frozen=True)
class Prompts:
    """
    The prompts of one call, split and broadcast once. Each list has one item per sound, `None` where a sound lacks
    the modality. Build it with [`Prompts.collect`].

    Args:
        text (`list[str | TimedPrompt | None]`): What to generate.
        text_embeds (`list[torch.Tensor | None]`): Embeddings `[tokens, width]` that replace the text.
        video (`list`): Paths or frames, see [`~AudioXPipeline.encode_video`].
        image (`list`): Paths or pictures.
        audio (`list`): Paths or `(waveform, rate)`, see [`~AudioXPipeline.encode_audio`].
        condition_embeds (`torch.Tensor` of shape `[sounds, tokens, width]`, *optional*): Contexts that replace all of
            the above.
        negative_text (`list[str]`, *optional*): What to avoid: one text, or one per sound or prompt.
        negative_video, negative_audio (`list`, *optional*): Videos and sounds to avoid, one or as many as prompts.
        negative_text_embeds (`torch.Tensor` of shape `[rows, tokens, width]`, *optional*): Embeddings that replace it.
        negative_condition_embeds (`torch.Tensor` of shape `[rows, tokens, width]`, *optional*): Contexts that replace
            it.
        negative_embeds (`dict[str, tuple[torch.Tensor | None, ...]]`): Embeddings of the negative prompt of each
            modality, one row per sound, for guidance by modality; see [`~AudioXPipeline.embed_negatives`].
        audio_padding_side (`str`): Where short audio prompts are padded, `"right"` or `"left"`.
        num_waveforms_per_prompt (`int`): Sounds per prompt. Those of one prompt are neighbours in the lists.
    """

    text: list[str | TimedPrompt | None]
    text_embeds: list[torch.Tensor | None]
    video: list
    image: list
    audio: list
    condition_embeds: torch.Tensor | None = None
    negative_text: list[str] | None = None
    negative_video: list | None = None
    negative_audio: list | None = None
    negative_text_embeds: torch.Tensor | None = None
    negative_condition_embeds: torch.Tensor | None = None
    negative_embeds: dict[str, tuple[torch.Tensor | None, ...]] = field(default_factory=dict)
    audio_padding_side: str = "right"
    num_waveforms_per_prompt: int = 1

    @classmethod
    def collect(
        cls,
        *,
        prompt: Any = None,
        negative_prompt: str | list[str] | None = None,
        video: Any = None,
        image: Any = None,
        audio: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        condition_embeds: torch.Tensor | None = None,
        negative_condition_embeds: torch.Tensor | None = None,
        audio_padding_side: str = "right",
        num_waveforms_per_prompt: int = 1,
        negative_video: Any = None,
        negative_audio: Any = None,
    ) -> "Prompts":
        """
        Build the prompts from the arguments of a call, which have the same names.

        Raises:
            ValueError: Arguments exclude each other, have the wrong type or differ in length, or a sound has no
                prompt.
        """
        embeds = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "condition_embeds": condition_embeds,
            "negative_condition_embeds": negative_condition_embeds,
        }
        for name, value in embeds.items():
            if value is not None:
                check_tensor(name, value, ("B", "tokens", "width"))
        _check_exclusive(prompt=prompt, prompt_embeds=prompt_embeds)
        _check_exclusive(negative_prompt=negative_prompt, negative_prompt_embeds=negative_prompt_embeds)
        check_choice("audio_padding_side", audio_padding_side, ("left", "right"))
        check_count("num_waveforms_per_prompt", num_waveforms_per_prompt, highest=MAX_WAVEFORMS)
        text = split_prompts(prompt)
        if text is not None:
            _check_prompts(text)
        negative_text = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
        if negative_text is not None:
            check_texts("negative_prompt", negative_text)

        given = {"prompt": prompt, "video": video, "image": image, "audio": audio, "prompt_embeds": prompt_embeds}
        given = [name for name, value in given.items() if value is not None]
        if condition_embeds is None and not given:
            raise ValueError(
                "Give at least one of `prompt`, `video`, `image`, `audio`, `prompt_embeds` and `condition_embeds`."
            )
        if condition_embeds is not None and given:
            raise ValueError(f"`condition_embeds` replaces all prompts; leave out `{given[0]}`.")
        negatives = negative_prompt, negative_prompt_embeds, negative_video, negative_audio
        if negative_condition_embeds is not None and any(value is not None for value in negatives):
            raise ValueError("`negative_condition_embeds` replaces all negative prompts; leave them out.")

        batches = broadcast(
            prompt=text,
            prompt_embeds=None if prompt_embeds is None else list(prompt_embeds),
            video=split_batch("video", video),
            image=split_batch("image", image),
            audio=split_batch("audio", audio),
            condition_embeds=None if condition_embeds is None else list(condition_embeds),
        )
        check_pictures(batches["video"], batches["image"])
        for i, values in enumerate(zip(*batches.values())):
            if all(value is None for value in values):
                raise ValueError(
                    "Give at least one of `prompt`, `video`, `image`, `audio`, `prompt_embeds` and"
                    f" `condition_embeds`; sample {i} has none."
                )
        negative_video = split_batch("negative_video", negative_video)
        negative_audio = split_batch("negative_audio", negative_audio)
        _check_negatives(
            len(batches["prompt"]),
            num_waveforms_per_prompt,
            negative_prompt=negative_text,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_condition_embeds=negative_condition_embeds,
            negative_video=negative_video,
            negative_audio=negative_audio,
        )
        if condition_embeds is not None:
            condition_embeds = condition_embeds.repeat_interleave(num_waveforms_per_prompt, dim=0)

        def repeated(name: str) -> list:
            return _repeat(batches[name], num_waveforms_per_prompt)

        return cls(
            text=repeated("prompt"),
            text_embeds=repeated("prompt_embeds"),
            video=repeated("video"),
            image=repeated("image"),
            audio=repeated("audio"),
            condition_embeds=condition_embeds,
            negative_text=negative_text,
            negative_video=negative_video,
            negative_audio=negative_audio,
            negative_text_embeds=negative_prompt_embeds,
            negative_condition_embeds=negative_condition_embeds,
            audio_padding_side=audio_padding_side,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
        )

    def __len__(self) -> int:
        """Number of sounds."""
        return len(self.text)

    @property
    def is_timed(self) -> bool:
        """Whether the text of any sound changes over time."""
        return any(is_timed(text) for text in self.text)

    @property
    def has_negatives(self) -> bool:
        """Whether there are negative prompts of any kind."""
        return bool(self.negatives) or self.negative_condition_embeds is not None

    @property
    def negatives(self) -> dict[str, str]:
        """Names of the arguments with the negative prompt of each modality."""
        given = {
            "text": {"negative_prompt": self.negative_text, "negative_prompt_embeds": self.negative_text_embeds},
            "video": {"negative_video": self.negative_video},
            "audio": {"negative_audio": self.negative_audio},
        }
        return {
            modality: name
            for modality, arguments in given.items()
            for name, value in arguments.items()
            if value is not None
        }

    def for_each_sound(self, negatives: list) -> list:
        """Return one negative prompt for each sound. There may be one of them, one for each prompt, or one for each sound."""
        if len(negatives) == 1:
            return negatives * len(self)
        return negatives if len(negatives) == len(self) else _repeat(negatives, self.num_waveforms_per_prompt)

    @property
    def pictures(self) -> list[tuple[Any, Any]]:
        """The video and the image of each sound. At most one of the two is given."""
        return list(zip(self.video, self.image))

    def modalities(self, sound: int) -> list[str]:
        """Return the modalities that a sound has a prompt for."""
        given = {
            "text": self.text[sound] is not None or self.text_embeds[sound] is not None,
            "video": self.video[sound] is not None or self.image[sound] is not None,
            "audio": self.audio[sound] is not None,
        }
        return [name for name, present in given.items() if present]

    def select(self, sounds: list[int]) -> "Prompts":
        """Return the prompts of some sounds. Of the negative ones it keeps only the embeddings."""
        names = ("text", "text_embeds", "video", "image", "audio")
        negative_embeds = {
            modality: tuple(
                None if tensor is None else torch.stack([tensor[sound] for sound in sounds]) for tensor in tensors
            )
            for modality, tensors in self.negative_embeds.items()
        }
        return Prompts(
            **{name: [getattr(self, name)[sound] for sound in sounds] for name in names},
            negative_embeds=negative_embeds,
        )

    def text_or_default(self, sound: int, text: str | None) -> str:
        """Return a text of a sound. Without one a video gets the text of training, everything else the empty text."""
        if text is not None:
            return text
        return "" if self.video[sound] is None and self.image[sound] is None else VIDEO_PROMPT


def _repeat(items: list, count: int) -> list:
    """Repeat each item of a list."""
    return [item for item in items for _ in range(count)]


def broadcast(**batches: list | None) -> dict[str, list]:
    """
    Bring lists to the same length: repeat lists of one item, and replace `None` by a list of `None`s.

    Raises:
        ValueError: Two lists of more than one item differ in length.
    """
    lengths = {name: len(items) for name, items in batches.items() if items is not None}
    batch_size = max(lengths.values(), default=0)
    if any(length not in (1, batch_size) for length in lengths.values()):
        listed = ", ".join(f"`{name}` has {length}" for name, length in lengths.items())
        raise ValueError(f"All lists must be equally long: {listed}.")
    lists = {name: [None] if items is None else items for name, items in batches.items()}
    return {name: items * batch_size if len(items) == 1 else items for name, items in lists.items()}


def check_pictures(videos: list, images: list) -> None:
    """Raise `ValueError` if a sound has both a video and an image."""
    for video, image in zip(videos, images, strict=True):
        if video is not None and image is not None:
            raise ValueError("Give either `video` or `image` for a sample, not both.")


def _check_exclusive(**arguments: Any) -> None:
    first, second = arguments
    if all(value is not None for value in arguments.values()):
        raise ValueError(f"Give either `{first}` or `{second}`, not both.")


def _check_prompts(prompts: list) -> None:
    texts = []
    for prompt in prompts:
        if is_timed(prompt):
            check_timed_prompt(prompt)
            texts += [text for _start, _end, text in prompt]
        else:
            texts.append(prompt)
    check_texts("prompt", ["" if text is None else text for text in texts])


def _check_negatives(batch_size: int, num_waveforms_per_prompt: int, **batches: Any) -> None:
    for name, rows in batches.items():
        if rows is not None and len(rows) not in (1, batch_size, batch_size * num_waveforms_per_prompt):
            raise ValueError(
                f"`{name}` has {len(rows)} negative prompts, for {batch_size} prompts; give one or as many."
            )


def check_texts(name: str, texts: Any) -> None:
    """Raise `ValueError` unless a value is a list of texts that can be encoded."""
    if texts == []:
        raise ValueError(f"`{name}` is an empty list.")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` must be a string or a list of strings, got {texts!r}.")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"`{name}` is not valid Unicode ({error.reason}): {text!r}.") from None
