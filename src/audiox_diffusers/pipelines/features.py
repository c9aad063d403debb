"""Files with the embeddings of a video, computed once for repeated use."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..atomic import replacing
from .checks import check_tensor


def is_features(video: Any) -> bool:
    """Whether a video is the path of a file that [`save_features`] wrote."""
    return isinstance(video, (str, os.PathLike)) and Path(video).suffix == ".safetensors"


def save_features(path: str | os.PathLike, video_embeds: torch.Tensor, sync_embeds: torch.Tensor | None) -> None:
    """
    Write the embeddings of one video to a file, atomically.

    Args:
        path (`str` or `os.PathLike`): A `.safetensors` file.
        video_embeds (`torch.Tensor` of shape `[num_video_frames, num_frame_tokens, width]`): Embeddings of the image
            encoder.
        sync_embeds (`torch.Tensor` of shape `[num_sync_tokens, width]`, *optional*): Embeddings of Synchformer, for
            models that use it.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    check_tensor("video_embeds", video_embeds, ("num_video_frames", "num_frame_tokens", "width"))
    if sync_embeds is not None:
        check_tensor("sync_embeds", sync_embeds, ("num_sync_tokens", "width"))
    tensors = {"video_embeds": video_embeds, "sync_embeds": sync_embeds}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from None


def load_features(path: str | os.PathLike, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """
    Read a tensor from a file that [`save_features`] wrote.

    Args:
        path (`str` or `os.PathLike`): The file.
        name (`str`): `"video_embeds"` or `"sync_embeds"`.
        shape (`tuple[int, ...]`, *optional*): Shape that the model expects.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has no such tensor, one of another shape, or one with NaN or infinite values.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a file of video features ({error})") from None
    if name not in tensors:
        raise ValueError(f"{path}: holds no {name}; compute the features again with the model you use")
    if shape is not None and tensors[name].shape != shape:
        raise ValueError(
            f"{path}: {name} has the shape {list(tensors[name].shape)}, and the model expects {list(shape)}; compute the"
            " features again with the model you use"
        )
    if not torch.isfinite(tensors[name]).all():
        raise ValueError(f"{path}: {name} holds NaN or infinite values")
    return tensors[name]
