"""LAION-CLAP (Wu et al., arXiv 2211.06687), through transformers: sound and text in one space."""

import torch
import torch.nn.functional as F
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase

from .base import AudioNetwork

# Settings of the released models. `ClapFeatureExtractor` has other defaults.
FRONT_END = {"frequency_min": 50, "frequency_max": 14_000, "truncation": "rand_trunc", "padding": "repeat"}


class Clap(AudioNetwork):
    """
    CLAP embeddings of texts and of the first 10 s of sounds. Shorter sounds are repeated, as in training. Nothing is
    random.

    Args:
        model: A CLAP model without feature fusion.
        tokenizer: Its tokenizer; `None` if texts are not needed.
    """

    sampling_rate = 48_000
    min_samples = 1

    def __init__(self, model: ClapModel, tokenizer: PreTrainedTokenizerBase | None = None):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.extractor = ClapFeatureExtractor(**FRONT_END)

    def mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Mel spectrogram in dB, `[1, 1001, 64]`."""
        samples = waveform[: self.extractor.nb_max_samples].numpy()
        inputs = self.extractor(samples, sampling_rate=self.sampling_rate, return_tensors="pt")
        return inputs["input_features"][0]

    def forward(self, mel: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute `windows`, normalised embeddings `[B, 1, D]`, of mel spectrograms `[B, 1, 1001, 64]`."""
        embeddings = self.model.get_audio_features(input_features=mel).pooler_output
        return {"windows": F.normalize(embeddings, dim=-1)[:, None]}

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Normalised embeddings of texts, float32 `[B, D]` on the CPU."""
        inputs = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        inputs = inputs.to(next(self.parameters()).device)
        embeddings = self.model.get_text_features(**inputs).pooler_output
        return F.normalize(embeddings, dim=-1).cpu()
