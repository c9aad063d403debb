"""Reading and writing of video, image and audio files, through PyAV and Pillow; spectrograms of sound."""

from .audio import load_audio, resample_audio
from .duration import media_duration
from .files import MediaBytes, MediaError
from .image import load_image
from .spectrogram import log_mel, log_mel_distance, spectrogram_picture
from .video import load_video, resize_frames
from .write import save_audio, save_video

__all__ = [
    "MediaBytes",
    "MediaError",
    "load_audio",
    "load_image",
    "load_video",
    "log_mel",
    "log_mel_distance",
    "media_duration",
    "resample_audio",
    "resize_frames",
    "save_audio",
    "save_video",
    "spectrogram_picture",
]
