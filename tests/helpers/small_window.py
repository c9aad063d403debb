"""A window of one second for the readers of training data."""

from audiox_diffusers.training.data.windows import WindowSpec

SMALL_WINDOW = WindowSpec(
    sampling_rate=8000,
    channels=1,
    hop_length=100,
    context_frames=2,
    window_samples=8000,
    prompt_samples=8000,
    video_fps=5.0,
    num_frames=5,
    frame_size=16,
)
