"""Reading and writing of video, image and audio files, through PyAV and Pillow."""

from .audio import load_audio, resample_audio
from .files import MediaError
from .image import load_image
from .video import load_video, resize_frames
from .write import save_audio, save_video

__all__ = [
    "MediaError",
    "load_audio",
    "load_image",
    "load_video",
    "resample_audio",
    "resize_frames",
    "save_audio",
    "save_video",
]
