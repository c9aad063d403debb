"""
Compare the speed of loading 720p video with the version that loading was first improved from:

    python benchmarks/data_loading.py [--dataset FOLDER] [--rounds 2] [--records 4]

Loads ten-second clips for AudioX and AudioX-MAF with this version and with commit 107a4df, in turn. Prints records a
second, by number of workers; how much faster this version is for each CPU second; its CPU time by part; and the cores
that keep an H100 busy. Needs a git clone with its history.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from statistics import mean, median

import av
import numpy as np
import torch
import torch.nn.functional as F
from common import create_parser
from loading_speed import MODELS, WORKERS, cpu_seconds, create_reader

from audiox_diffusers.media import load_audio, save_video
from audiox_diffusers.media.containers import open_media, picture_stream
from audiox_diffusers.media.video import timed_pictures
from audiox_diffusers.training.data.decoding import decode_video
from audiox_diffusers.training.data.streaming import RowKey

BASELINE = "107a4df"
HEIGHT, WIDTH, FPS, SECONDS, RATE = 720, 1280, 24, 10, 44100

# Records a second that training steps on an H100 take. Assumed, not measured.
GPU_RECORDS = 35


def texture(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """Return a random picture `[3, height, width]` in 0..1 with the spectrum of photographs, about 1/f."""
    spectrum = torch.fft.rfft2(torch.randn(3, height, width, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    frequency[0, 0] = torch.inf
    picture = torch.fft.irfft2(spectrum / frequency**1.4, s=(height, width))
    return (0.5 + 0.17 * picture / picture.std()).clamp(0, 1)


def moving_pictures(seed: int) -> np.ndarray:
    """Return frames `[T, H, W, 3]` of a camera that pans and zooms over a scene with an object in motion."""
    generator = torch.Generator().manual_seed(seed)
    scene, side = texture(generator, HEIGHT * 5 // 4, WIDTH * 5 // 4)[None], HEIGHT // 3
    thing = texture(generator, side, side)
    frames = np.empty((FPS * SECONDS, HEIGHT, WIDTH, 3), np.uint8)
    for index, frame in enumerate(frames):
        time = torch.tensor(index / FPS)
        zoom = 0.8 - 0.04 * torch.sin(time / 3)
        camera = torch.zeros(1, 2, 3)
        camera[0, 0, 0] = camera[0, 1, 1] = zoom
        camera[0, :, 2] = torch.stack([0.12 * torch.sin(time / 2.3), 0.1 * torch.cos(time / 3.1)])
        grid = F.affine_grid(camera, (1, 3, HEIGHT, WIDTH), align_corners=False)
        picture = F.grid_sample(scene, grid, align_corners=False)[0]
        top = round(float((HEIGHT - side) * (0.5 + 0.4 * torch.sin(1.3 * time))))
        left = round(float((WIDTH - side) * (0.5 + 0.4 * torch.sin(0.9 * time + 1))))
        picture[:, top : top + side, left : left + side] = thing
        frame[:] = (picture * 255).byte().permute(1, 2, 0).numpy()
    return frames


def write_clips(folder: Path, count: int) -> None:
    """Write a clip, H.264 with AAC, and copies of it."""
    time = np.arange(RATE * SECONDS) / RATE
    tones = sum(np.sin(2 * np.pi * pitch * time) * (1 + np.sin(time * pitch / 200)) for pitch in (220, 331, 1250))
    sound = 0.08 * tones + 0.02 * np.random.default_rng(0).standard_normal((2, len(time)))
    save_video(folder / "0.mp4", moving_pictures(0), sound.clip(-1, 1).astype(np.float32), RATE, fps=FPS)
    for number in range(1, count):
        shutil.copy(folder / "0.mp4", folder / f"{number}.mp4")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary git worktree."""
    repository = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name, commit)
        git = ["git", "-C", str(repository), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measure(tree: Path, folder: Path, records: int) -> dict[str, list[list[float]]]:
    """Run `loading_speed.py` with the package in a tree."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("loading_speed.py")
    command = [sys.executable, str(script), str(folder), str(records)]
    return json.loads(subprocess.check_output(command, env=environment, text=True).splitlines()[-1])


def least_cpu(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the CPU milliseconds of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        start = cpu_seconds()
        function()
        times.append(1000 * (cpu_seconds() - start))
    return min(times)


def parts(model: str, path: Path) -> dict[str, float]:
    """Return the CPU milliseconds of the parts of loading a clip."""
    reader = create_reader(model)
    spec, source = reader.spec, str(path)
    periods = [1 / Fraction(rate) for rate in (spec.video_fps, spec.sync_fps) if rate]

    def demux() -> None:
        with open_media(path) as container:
            for _ in container.demux(picture_stream(container, path)):
                pass

    def decode_wanted() -> None:
        end = Fraction(spec.num_frames) / Fraction(spec.video_fps)
        with closing(timed_pictures(path, Fraction(0), 2**26, periods, 2 * spec.frame_size)) as pictures:
            for time, _, _ in pictures:
                if time > end:
                    break

    video = least_cpu(lambda: decode_video(source, spec, 0.0, spec.num_frames, spec.num_sync_frames))
    sound = least_cpu(lambda: load_audio(source, spec.sampling_rate, spec.channels, duration=spec.seconds))
    whole = least_cpu(lambda: reader.read(RowKey(0, 0, 0, 0), {"video": source}))
    demuxed, decoded = least_cpu(demux), least_cpu(decode_wanted)
    return {
        "demux": demuxed,
        "decode": decoded - demuxed,
        "scale": video - decoded,
        "sound": sound,
        "rest": whole - video - sound,
        "all": whole,
    }


def decode_alone(path: Path) -> None:
    """Decode all frames with FFmpeg in one thread."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for _ in container.decode(video=0):
            pass


def print_table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def parse() -> argparse.Namespace:
    parser = create_parser(__doc__)
    parser.add_argument("--dataset", type=Path, help="folder of mp4 files (default: a ten-second clip, made here)")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each version (default: 2)")
    parser.add_argument("--records", type=int, default=4, help="records to time, for each worker (default: 4)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    sides = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as name, checkout(BASELINE) as old:
        folder = args.dataset or Path(name)
        if args.dataset is None:
            write_clips(folder, 4)
        for _ in range(args.rounds):
            for side, tree in (("before", old), ("now", Path(__file__).resolve().parents[1])):
                sides[side].append(measure(tree, folder, args.records))
        clip = sorted(folder.glob("*.mp4"))[0]
        by_part = {model: parts(model, clip) for model in MODELS}
        floor = least_cpu(lambda: decode_alone(clip))

    def cpu(side: str, model: str) -> float:
        return median(figures[model][0][0] for figures in sides[side])

    speeds = [
        [
            model,
            side,
            *(f"{1 / mean(figures[model][column][1] for figures in sides[side]):.2f}" for column in range(3)),
        ]
        for model in MODELS
        for side in sides
    ]
    print("Records a second. Other work on the machine slows all of them.\n")
    print_table(["model", "version", *(f"workers: {workers}" for workers in WORKERS)], speeds)
    rows = []
    for model in MODELS:
        before, now = cpu("before", model), cpu("now", model)
        rows.append([model, f"{1 / before:.2f}", f"{1 / now:.2f}", f"{before / now:.1f}", f"{GPU_RECORDS * now:.0f}"])
    print(
        f"Records for a CPU second, and cores for {GPU_RECORDS} records a second, which an H100 is assumed to take.\n"
    )
    print_table(["model", "before", "now", "times as fast", "cores"], rows)
    print("CPU milliseconds of a record by part.\n")
    print_table(
        ["model", *by_part["AudioX"]], [[model, *(f"{v:.0f}" for v in row.values())] for model, row in by_part.items()]
    )
    print(f"FFmpeg alone decodes all frames of the clip in {floor:.0f} ms of CPU time.")


if __name__ == "__main__":
    main()
