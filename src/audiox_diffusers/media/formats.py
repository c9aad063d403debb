"""Formats that can be written."""

# extension: (FFmpeg muxer, FFmpeg encoder)
AUDIO_FORMATS = {
    ".wav": ("wav", "pcm_s16le"),
    ".flac": ("flac", "flac"),
    ".mp3": ("mp3", "libmp3lame"),
    ".ogg": ("ogg", "libopus"),
    ".opus": ("opus", "libopus"),
    ".m4a": ("ipod", "aac"),
}
# extension: FFmpeg muxer
VIDEO_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
