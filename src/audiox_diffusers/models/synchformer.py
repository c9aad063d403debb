"""The visual encoder of Synchformer, for the models that follow the timing of a video."""

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from transformers.modeling_outputs import BaseModelOutput

from .attention_audiox import AudioXAttention, AudioXEncoderBlock
from .model_audiox import AudioXModelMixin


class SynchformerBlock(nn.Module):
    """
    Pre-norm block with divided space-time attention (arXiv 2102.05095, section 3): attention over time, attention over
    space, feed-forward. The class token attends to all patches. A patch attends to the class token and to the patches
    at its position (over time) or in its time step (over space).
    """

    def __init__(self, dim: int, heads: int, eps: float):
        super().__init__()
        head_dim = dim // heads
        self.norm_time = nn.LayerNorm(dim, eps=eps)
        self.attn_time = AudioXAttention(dim, heads, head_dim, bias=True, out_bias=True)
        self.norm_space = nn.LayerNorm(dim, eps=eps)
        self.attn_space = AudioXAttention(dim, heads, head_dim, bias=True, out_bias=True)
        self.norm_ff = nn.LayerNorm(dim, eps=eps)
        self.ff = FeedForward(dim, mult=4, activation_fn="gelu")

    def forward(self, class_token: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the block on `class_token` `[B, 1, D]` and `patches` `[B, time, positions, D]`."""
        class_token, patches = self._attend(self.attn_time, self.norm_time, class_token, patches, over_time=True)
        class_token, patches = self._attend(self.attn_space, self.norm_space, class_token, patches, over_time=False)
        class_token = class_token + self.ff(self.norm_ff(class_token))
        patches = patches + self.ff(self.norm_ff(patches))
        return class_token, patches

    @staticmethod
    def _attend(
        attn: AudioXAttention, norm: nn.LayerNorm, class_token: torch.Tensor, patches: torch.Tensor, over_time: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed_class, normed = norm(class_token), norm(patches)
        everything = torch.cat((normed_class, normed.flatten(1, 2)), dim=1)
        class_token = class_token + attn(normed_class, everything)

        groups = normed.transpose(1, 2) if over_time else normed
        batch_size, num_groups = groups.shape[:2]
        groups = groups.flatten(0, 1)
        context = torch.cat((normed_class.repeat_interleave(num_groups, dim=0), groups), dim=1)
        attended = attn(groups, context).unflatten(0, (batch_size, num_groups))
        return class_token, patches + (attended.transpose(1, 2) if over_time else attended)


class SynchformerVisionModel(AudioXModelMixin, ConfigMixin):
    r"""
    The visual encoder of Synchformer (arXiv 2401.16423, section 3), a Motionformer (arXiv 2106.05392). It encodes when
    things happen, as eight tokens for each segment of sixteen frames at 25 fps.

    Parameters:
        image_size (`int`): Height and width of a frame.
        patch_size (`int`): Height and width of a patch.
        tubelet_size (`int`): Number of frames in a patch.
        num_frames (`int`): Number of frames in a segment.
        hidden_size (`int`): Width of the tokens.
        num_hidden_layers, num_attention_heads (`int`): Number of blocks, and of heads in each block.
        video_fps (`float`): Frame rate that the weights expect.
        segment_stride (`int`): Number of frames between the starts of consecutive segments.
    """

    _no_split_modules = ["SynchformerBlock", "AudioXEncoderBlock"]
    _repeated_blocks = ["SynchformerBlock"]
    _skip_layerwise_casting_patterns = ["embed", "norm"]

    @register_to_config
    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_size: int = 2,
        num_frames: int = 16,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        video_fps: float = 25.0,
        segment_stride: int = 8,
    ):
        super().__init__()
        eps = 1e-6
        patch = (tubelet_size, patch_size, patch_size)
        self.patch_embed = nn.Conv3d(3, hidden_size, patch, stride=patch)
        self.class_embed = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.class_position_embed = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.space_position_embed = nn.Parameter(torch.zeros(1, 1, (image_size // patch_size) ** 2, hidden_size))
        self.time_position_embed = nn.Parameter(torch.zeros(1, num_frames // tubelet_size, 1, hidden_size))
        self.blocks = nn.ModuleList(
            [SynchformerBlock(hidden_size, num_attention_heads, eps) for _ in range(num_hidden_layers)]
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=eps)
        self.pool_class_embed = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.pool = AudioXEncoderBlock(
            hidden_size, num_attention_heads, hidden_size // num_attention_heads, bias=True, eps=eps
        )

    def forward(self, pixel_values: torch.Tensor, return_dict: bool = True) -> BaseModelOutput | tuple[torch.Tensor]:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `[segments, num_frames, 3, image_size, image_size]`): Frames in
                -1..1.
            return_dict (`bool`): Whether to return a [`~transformers.modeling_outputs.BaseModelOutput`].

        Returns:
            `last_hidden_state` of shape `[segments, num_frames // tubelet_size, hidden_size]`, one token per time step.
        """
        patches = self.patch_embed(pixel_values.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        patches = patches + self.space_position_embed + self.time_position_embed
        class_token = (self.class_embed + self.class_position_embed).expand(patches.shape[0], -1, -1)
        for block in self.blocks:
            class_token, patches = block(class_token, patches)

        steps = self.norm_out(patches).flatten(0, 1)
        steps = torch.cat((self.pool_class_embed.expand(steps.shape[0], -1, -1), steps), dim=1)
        tokens = self.pool(steps)[:, 0].unflatten(0, patches.shape[:2])

        if not return_dict:
            return (tokens,)
        return BaseModelOutput(last_hidden_state=tokens)
