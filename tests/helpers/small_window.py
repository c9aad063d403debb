"""A window of one second for the readers of training data."""

from audiox_diffusers.training.data.records import WindowSpec

SMALL_WINDOW = WindowSpec(
    sampling_rate=8000,
    channels=1,
    num_samples=8000,
    prompt_samples=8000,
    seconds=1.0,
    video_fps=5.0,
    num_frames=5,
    frame_size=16,
    sync_fps=0.0,
    num_sync_frames=0,
    sync_size=0,
)
