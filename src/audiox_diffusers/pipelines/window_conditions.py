"""The contexts of all windows of a longer sound."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .conditioning import AudioXConditioningMixin
from .denoising import Sampling
from .features import is_features
from .prompts import Prompts
from .windows import TimedPrompt, Window, is_timed, prompt_shares, window_weights


class AudioXWindowConditioningMixin(AudioXConditioningMixin):
    """[`AudioXConditioningMixin`] for sounds of more than one window and for timed prompts."""

    def encode_windows(
        self,
        prompts: Prompts,
        starts: list[list[int]],
        sampling: Sampling,
        device: torch.device,
        offset: int = 0,
    ) -> tuple[list[Window], torch.Tensor]:
        """
        Encode the prompts of each window. A window across a change of text runs once for each text. Windows with equal
        prompts share a context.

        Args:
            prompts (`Prompts`): Prompts whose `audio` is a list of waveforms `[channels, N]` at the model's rate and
                as long as the whole sound.
            starts (`list[list[int]]`): First frames of the windows of each sound.
            sampling (`Sampling`): Its `window_overlap` and `generator` are used.
            device (`torch.device`): Device to encode on.
            offset (`int`): Samples between the start of the first frame and time 0 of prompts and videos.

        Returns:
            `tuple`: The windows, ordered by start, and their contexts `[rows, 1 + weights, tokens, width]` on the CPU:
            those with all modalities, and those without each modality that `sampling.weights` names.
        """
        size, rate = self.transformer.config.sample_size, self.vae.config.sampling_rate
        frame_rate = rate / self.vae.hop_length
        spans = [text if is_timed(text) else [(0, float("inf"), text)] for text in prompts.text]
        texts = self._embed_all_texts(prompts, spans, device)

        weights = [dict(zip(own, window_weights(own, size, sampling.window_overlap), strict=True)) for own in starts]
        windows, rows, known = [], [], {}
        for start in sorted({start for own in starts for start in own}):
            seconds = start / frame_rate - offset / rate
            missing = []
            for sound in range(len(prompts)):
                if start not in weights[sound]:
                    continue
                moves = prompts.video[sound] is not None or prompts.audio[sound] is not None
                for number, share in enumerate(prompt_shares(spans[sound], seconds, size, frame_rate)):
                    if not share.any():
                        continue
                    key = sound, number, start if moves else None
                    if key not in known:
                        known[key] = len(rows) + len(missing)
                        missing.append((sound, number))
                    windows.append(Window(sound, start, weights[sound][start] * share, known[key]))
            if missing:
                sounds = [sound for sound, _ in missing]
                here = replace(prompts.select(sounds), text_embeds=[texts[row] for row in missing])
                generator = sampling.generator
                generator = [generator[sound] for sound in sounds] if isinstance(generator, list) else generator
                rows.extend(
                    self._encode_rows(here, start, max(0.0, seconds), generator, device, list(sampling.weights))
                )
        return windows, torch.stack(rows)

    def check_features(self, videos: list, num_samples: int) -> None:
        """Raise `ValueError` if a file with the features of one window is given for a longer sound."""
        for video in videos:
            if is_features(video) and num_samples > self.window_samples:
                raise ValueError(
                    f"`video` {video}: holds the features of one window; for a longer sound give the video itself."
                )

    def _embed_all_texts(
        self, prompts: Prompts, spans: list[TimedPrompt], device: torch.device
    ) -> dict[tuple[int, int], torch.Tensor]:
        """Return the embeddings `[tokens, width]` of each text by sound and number. Each text is encoded once."""
        embeds, words = {}, {}
        for sound, text_embeds in enumerate(prompts.text_embeds):
            for number, (_start, _end, text) in enumerate(spans[sound]):
                if text_embeds is None:
                    words[sound, number] = prompts.text_or_default(sound, text)
                else:
                    embeds[sound, number] = text_embeds
        distinct = list(dict.fromkeys(words.values()))
        if distinct:
            encoded = dict(zip(distinct, self.embed_texts(distinct, device), strict=True))
            embeds |= {key: encoded[text] for key, text in words.items()}
        return embeds

    def _encode_rows(
        self,
        prompts: Prompts,
        start: int,
        seconds: float,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
        without: Sequence[str],
    ) -> torch.Tensor:
        """
        Encode one window of some sounds, whose text is embedded already.

        Args:
            start (`int`): First latent frame of the window, which selects its part of the audio prompts.
            seconds (`float`): Its time, which selects its part of the videos.

        Returns:
            `torch.Tensor`: Contexts `[rows, 1 + without, tokens, width]` on the CPU.
        """
        first, length = start * self.vae.hop_length, self.conditioner.config.audio_prompt_samples
        waveforms = torch.zeros(len(prompts), self.vae.config.audio_channels, length)
        for waveform, audio in zip(waveforms, prompts.audio, strict=True):
            if audio is not None:
                part = audio[:, first : first + length]
                waveform[:, : part.shape[1]] = part
        audio_embeds = None
        if waveforms.any() or self.conditioner.config.audio_type != "audio_autoencoder":
            audio_embeds = self.encode_waveforms(waveforms, generator, device)
        embeds = (
            torch.stack(prompts.text_embeds),
            self._encode_video(prompts.pictures, device, seconds),
            self._encode_sync(prompts.pictures, device, seconds),
            audio_embeds,
        )
        return self._join_without(prompts, embeds, without, device).cpu()
