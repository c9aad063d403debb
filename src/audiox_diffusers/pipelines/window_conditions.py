"""The contexts of the windows of a longer sound, each with its own seconds of everything."""

import torch

from .conditioning import AudioXConditioningMixin, with_default
from .features import is_features
from .windows import Window, is_timed, prompt_shares, window_weights


class AudioXWindowConditioningMixin(AudioXConditioningMixin):
    """[`AudioXConditioningMixin`] for sounds of more than one window, or with prompts that change."""

    def encode_windows(
        self,
        items: dict[str, list],
        starts: list[list[int]],
        overlap: int,
        offset: int = 0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | None = None,
    ) -> tuple[list[Window], torch.Tensor]:
        """
        The windows of all sounds and their contexts. A window that lies where a prompt changes runs once for each of
        its texts. Windows that differ in nothing share a context; contexts are kept on the CPU.

        Args:
            items: of each sound, as [`~AudioXConditioningMixin.broadcast_prompts`] gives it. Prompts may be timed,
                `audio` is a waveform `[channels, N]` at the model's rate, as long as the whole sound.
            starts: first frames of the windows of each sound.
            overlap: frames over which windows give way to each other.
            offset: samples by which the sound, and with it the time of prompts and videos, begins after the first
                frame.
            generator: source of the noise of audio prompts, one or one for each sound.
            device: where to encode.

        Returns:
            The windows, those of one time together, and contexts `[rows, tokens, width]`.
        """
        device = device or self._execution_device
        size, rate = self.transformer.config.sample_size, self.vae.config.sampling_rate
        frame_rate = rate / self.vae.hop_length
        samples = list(zip(items["prompt"], items["video"], items["image"], strict=True))
        prompts = [prompt if is_timed(prompt) else [(0, float("inf"), prompt)] for prompt, _video, _image in samples]
        texts = self._embed_all_texts(items, prompts, device)

        weights = [dict(zip(own, window_weights(own, size, overlap), strict=True)) for own in starts]
        windows, rows, known = [], [], {}
        for start in sorted({start for own in starts for start in own}):
            seconds = start / frame_rate - offset / rate
            missing = []
            for sound, prompt in enumerate(prompts):
                if start not in weights[sound]:
                    continue
                moves = items["video"][sound] is not None or items["audio"][sound] is not None
                for number, share in enumerate(prompt_shares(prompt, seconds, size, frame_rate)):
                    if not share.any():
                        continue
                    key = sound, number, start if moves else None
                    if key not in known:
                        known[key] = len(rows) + len(missing)
                        missing.append((sound, number))
                    windows.append(Window(sound, start, weights[sound][start] * share, known[key]))
            if missing:
                rows.extend(self._encode_rows(missing, items, texts, start, max(0.0, seconds), generator, device))
        return windows, torch.stack(rows)

    def check_features(self, videos: list, num_samples: int) -> None:
        """Raise `ValueError` where the features of a video's first window are given for a longer sound."""
        for video in videos:
            if is_features(video) and num_samples > self.window_samples:
                raise ValueError(
                    f"`video` {video}: holds the features of one window; for a longer sound give the video itself."
                )

    def _embed_all_texts(
        self, items: dict[str, list], prompts: list, device: torch.device
    ) -> dict[tuple[int, int], torch.Tensor]:
        """The embeddings `[tokens, width]` of each text, by sound and number; each one is encoded once."""
        samples = enumerate(zip(prompts, items["prompt_embeds"], items["video"], items["image"], strict=True))
        embeds, words = {}, {}
        for sound, (prompt, prompt_embeds, video, image) in samples:
            for number, (_start, _end, text) in enumerate(prompt):
                if prompt_embeds is None:
                    words[sound, number] = with_default(text, video, image)
                else:
                    embeds[sound, number] = prompt_embeds
        distinct = list(dict.fromkeys(words.values()))
        if distinct:
            encoded = dict(zip(distinct, self.embed_texts(distinct, device), strict=True))
            embeds |= {key: encoded[text] for key, text in words.items()}
        return embeds

    def _encode_rows(
        self,
        rows: list[tuple[int, int]],
        items: dict[str, list],
        texts: dict[tuple[int, int], torch.Tensor],
        start: int,
        seconds: float,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
    ) -> torch.Tensor:
        """The contexts of one window for some sounds and texts, `[rows, tokens, width]` on the CPU."""
        sounds = [sound for sound, _ in rows]
        video, image = [items["video"][sound] for sound in sounds], [items["image"][sound] for sound in sounds]
        first, length = start * self.vae.hop_length, self.conditioner.config.audio_prompt_samples
        waveforms = torch.zeros(len(rows), self.vae.config.audio_channels, length)
        for waveform, sound in zip(waveforms, sounds, strict=True):
            if items["audio"][sound] is not None:
                part = items["audio"][sound][:, first : first + length]
                waveform[:, : part.shape[1]] = part
        audio_embeds = None
        if waveforms.any() or self.conditioner.config.audio_type != "audio_autoencoder":
            generators = [generator[sound] for sound in sounds] if isinstance(generator, list) else generator
            audio_embeds = self.encode_waveforms(waveforms, generators, device)
        return self.join_embeds(
            torch.stack([texts[row] for row in rows]),
            self.encode_video(video, image, device=device, start=seconds),
            self.encode_sync(video, image, device=device, start=seconds),
            audio_embeds,
            device,
        ).cpu()
