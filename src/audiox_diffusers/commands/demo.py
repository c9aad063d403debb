"""`audiox demo`: everything once, offline, with a small random model."""

import shlex
from argparse import Namespace
from pathlib import Path

import numpy as np

from ..cli import main
from ..media import save_video
from ..media.files import check_target
from ..random_model import create_random_pipeline
from .quiet import quiet_libraries

STEPS = 25
NOISE = "The weights are random: the result is noise, and not what AudioX sounds like."


def run(args: Namespace) -> int:
    folder = Path(args.output)
    check_target(folder / "demo.mp4" if folder.exists() else folder)
    folder.mkdir(exist_ok=True)

    print(f"A small random model of AudioX's shape. {NOISE}")
    video, model = folder / "bouncing-ball.mp4", folder / "model"
    with quiet_libraries():
        save_video(video, draw_bouncing_ball(), fps=30)
        create_random_pipeline().save_pretrained(model)
    print(f"wrote {video} and {model}")

    generate = ["generate", "--model", str(model), "--steps", str(STEPS)]
    video_to_sound = [*generate, "--video", str(video), "--prompt", "a ball bounces on a wooden floor"]
    text_to_sound = [*generate, "--prompt", "waves on a pebble beach"]
    for command, output in ((video_to_sound, "demo.mp4"), (text_to_sound, "demo.wav")):
        command = [*command, "--output", str(folder / output)]
        print(f"$ audiox {shlex.join(command)}", flush=True)
        if code := main(command):
            return code
    print(f"Done. {NOISE}")
    return 0


def draw_bouncing_ball(seconds: float = 10.0, fps: int = 30, height: int = 360, width: int = 640) -> np.ndarray:
    """An orange ball that bounces across a floor, from wall to wall: uint8 `[frames, height, width, 3]`."""
    radius, floor = height // 9, height * 5 // 6
    rows, columns = np.mgrid[:height, :width]
    room = np.where((rows < floor)[..., None], (200, 215, 230), (120, 90, 60)).astype(np.uint8)

    frames = np.empty((round(seconds * fps), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        time = index / fps
        flight = time % 1.25 / 1.25  # from one bounce to the next
        y = floor - radius - 4 * flight * (1 - flight) * (floor - 2 * radius)
        reach = width - 2 * radius
        x = radius + reach - abs(time * width / 4 % (2 * reach) - reach)
        frame[:] = room
        shadow = ((columns - x) / radius) ** 2 + ((rows - floor - radius / 4) / (radius / 5)) ** 2 < 1
        frame[shadow] = (80, 60, 40)
        distance = np.hypot(columns - x, rows - y)
        frame[distance < radius] = (235, 120, 40)
        frame[np.hypot(columns - x + radius / 3, rows - y + radius / 3) < radius / 4] = (255, 200, 150)
    return frames
