"""Synchformer (Iashin et al., arXiv 2401.16423) with its audio tower and head: the offset between sound and video."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import ASTConfig, ASTModel

from ...models import SynchformerVisionModel
from ..frontends import SYNCHFORMER_HOP, SYNCHFORMER_SEGMENT, prepare, synchformer_mel

WINDOW = 14


class SynchformerAudioModel(nn.Module):
    """Audio tower: an audio spectrogram transformer and a layer that pools over frequency. Six tokens per segment."""

    def __init__(self):
        super().__init__()
        self.ast = ASTModel(ASTConfig(max_length=66))
        self.freq_attn_agg = nn.TransformerEncoderLayer(
            768, 12, 3072, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        self.freq_attn_agg.cls_token = nn.Parameter(torch.zeros(1, 1, 768))

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Tokens `[segments, 6, 768]` of mel spectrograms `[segments, 128, 66]`."""
        patches = self.ast(mel.transpose(1, 2)).last_hidden_state[:, 2:].unflatten(1, (12, 6))
        columns = patches.transpose(1, 2).flatten(0, 1)
        columns = torch.cat((self.freq_attn_agg.cls_token.expand(len(columns), -1, -1), columns), dim=1)
        return self.freq_attn_agg(columns)[:, 0].unflatten(0, (len(mel), 6))


class SynchformerHeadBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln1 = nn.LayerNorm(dim)
        self.ln2 = nn.LayerNorm(dim)
        self.attn = nn.ModuleDict({name: nn.Linear(dim, dim) for name in ("key", "query", "value", "proj")})
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, tokens, D]` to `[B, tokens, D]`."""
        normed = self.ln1(hidden_states)
        query, key, value = (
            self.attn[name](normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden_states = hidden_states + self.attn["proj"](attended)
        return hidden_states + self.mlp(self.ln2(hidden_states))


class SynchformerHead(nn.Module):
    """Classifier of the offset, from the tokens of 14 segments of both towers."""

    def __init__(self, dim: int = 768, depth: int = 3, heads: int = 8, num_classes: int = 21):
        super().__init__()
        self.OFF_tok = nn.Parameter(torch.zeros(1, 1, dim))
        self.MOD_tok = nn.Parameter(torch.zeros(1, 1, dim))
        self.vis_in_lnorm = nn.LayerNorm(dim)
        self.aud_in_lnorm = nn.LayerNorm(dim)
        self.pos_emb_cfg = nn.ParameterDict({"pos_emb": nn.Parameter(torch.zeros(1, 2 + WINDOW * (8 + 6), dim))})
        self.blocks = nn.ModuleList([SynchformerHeadBlock(dim, heads) for _ in range(depth)])
        self.ln_f = nn.LayerNorm(dim)
        self.off_head = nn.Linear(dim, num_classes)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Logits `[B, 21]` of `visual` `[B, 112, 768]` and `audio` `[B, 84, 768]`."""
        off, mod = (token.expand(len(visual), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        hidden_states = torch.cat((off, self.vis_in_lnorm(visual), mod, self.aud_in_lnorm(audio)), dim=1)
        hidden_states = hidden_states + self.pos_emb_cfg["pos_emb"]
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.off_head(self.ln_f(hidden_states[:, 0]))


class Synchformer(nn.Module):
    """Synchformer with both towers and its head. Its classes are offsets from -2 to 2 s, 0.2 s apart."""

    sampling_rate = 16_000
    video_fps = 25.0
    offsets = tuple(round(-2 + 0.2 * number, 1) for number in range(21))

    def __init__(self):
        super().__init__()
        self.vfeat_extractor = SynchformerVisionModel()
        self.afeat_extractor = SynchformerAudioModel()
        self.vproj = nn.Linear(768, 768)
        self.aproj = nn.Linear(768, 768)
        self.transformer = SynchformerHead()

    def visual_tokens(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokens `[segments, 8, 768]` of frames `[frames, 3, 224, 224]` in -1..1 at 25 frames a second."""
        config = self.vfeat_extractor.config
        segments = frames.unfold(0, config.num_frames, config.segment_stride).movedim(-1, 1)
        return torch.cat([self.vfeat_extractor(part, return_dict=False)[0] for part in segments.split(4)])

    def audio_tokens(self, waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        """Tokens `[segments, 6, 768]` of a waveform `[channels, samples]`."""
        mono = prepare(waveform, sampling_rate, self.sampling_rate, remove_mean=False)
        return self.afeat_extractor(synchformer_mel(mono))

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """
        Logits of the offset in the first and in the last 14 segments (4.8 s).

        Args:
            visual: `[segments, 8, 768]`, as [`Synchformer.visual_tokens`] gives them.
            audio: `[segments, 6, 768]`, as [`Synchformer.audio_tokens`] gives them.

        Returns:
            `[2, 21]`.

        Raises:
            ValueError: There are fewer than 14 segments.
        """
        shortest = min(len(visual), len(audio))
        if shortest < WINDOW:
            seconds = ((WINDOW - 1) * SYNCHFORMER_HOP + SYNCHFORMER_SEGMENT) / self.sampling_rate
            raise ValueError(f"DeSync needs clips of at least {seconds:g} s with sound and picture.")
        windows = (slice(0, WINDOW), slice(shortest - WINDOW, shortest))
        visual = self.vproj(torch.stack([visual[window].flatten(0, 1) for window in windows]))
        audio = self.aproj(torch.stack([audio[window].flatten(0, 1) for window in windows]))
        return self.transformer(visual, audio)
