"""Reading and writing of sound, video and picture files, with PyAV and Pillow; spectrograms."""

from typing import TYPE_CHECKING

from .._imports import lazy_names

if TYPE_CHECKING:
    from .audio import load_audio
    from .duration import media_duration
    from .files import MediaBytes, MediaError
    from .frames import FrameSpec, load_frames
    from .image import load_image
    from .recipe import Recipe, read_recipe
    from .resample import resample_audio
    from .spectrogram import log_mel, log_mel_distance, spectrogram_picture
    from .video import load_video, resize_frames
    from .write import save_audio, save_video

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "audio": ["load_audio"],
        "duration": ["media_duration"],
        "files": ["MediaBytes", "MediaError"],
        "frames": ["FrameSpec", "load_frames"],
        "image": ["load_image"],
        "recipe": ["Recipe", "read_recipe"],
        "resample": ["resample_audio"],
        "spectrogram": ["log_mel", "log_mel_distance", "spectrogram_picture"],
        "video": ["load_video", "resize_frames"],
        "write": ["save_audio", "save_video"],
    },
)
