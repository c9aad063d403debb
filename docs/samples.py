"""
Generate the samples and the picture at the top of README.md with audiox-tiny:

    python docs/samples.py
"""

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from audiox_diffusers.cli import main
from audiox_diffusers.media import load_video, save_video
from audiox_diffusers.media.sound_picture import sound_picture
from audiox_diffusers.scenes.examples import VIDEO

DOCS = Path(__file__).parent
COMMANDS = (
    'generate --prompt "three bell strikes" --output three-bell-strikes.mp3',
    'generate --prompt "a siren, then two drum beats" --output a-siren-then-two-drum-beats.mp3',
    'generate --prompt "a bird singing, then rain" --output a-bird-singing-then-rain.mp3',
    "generate --video {silent} --output drum-and-bell.mp4",
)
FPS, SIZE = 25, 192
WIDTH, FRAMES = 1000, 8


def draw_picture(video: Path) -> Image.Image:
    """Return the brightest frame of each half second of a video over the waveform and the spectrogram of its sound, on one time axis."""
    frames = load_video(video, fps=FPS).permute(0, 2, 3, 1).numpy()
    side = WIDTH // FRAMES
    sound = sound_picture(video)
    sound = sound.resize((WIDTH, round(sound.height * 0.8)))
    picture = Image.new("RGB", (WIDTH, side + 8 + sound.height), "white")
    for place in range(FRAMES):
        span = frames[place * len(frames) // FRAMES : (place + 1) * len(frames) // FRAMES]
        frame = Image.fromarray(max(span, key=lambda frame: frame.mean()))
        picture.paste(frame.resize((side, side)), (place * side, 0))
    picture.paste(sound, (0, side + 8))
    return picture


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        silent = Path(folder) / "silent.mp4"
        save_video(silent, VIDEO.frames(FPS, SIZE), fps=FPS)
        for command in COMMANDS:
            *words, output = shlex.split(command.format(silent=silent))
            if code := main([*words, str(DOCS / "samples" / output)]):
                raise SystemExit(code)
    draw_picture(DOCS / "samples" / "drum-and-bell.mp4").save(DOCS / "pictures" / "video-to-audio.png")
