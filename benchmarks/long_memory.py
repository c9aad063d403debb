"""
Peak memory of long sounds, written to a file: in windows and tiles, and all at once.

    python benchmarks/long_memory.py [--seconds 30 120 600] [--whole 30 120] [--video] [--model FOLDER]

Each line is a process of its own: its peak resident memory on a CPU, or the peak of what torch allocates on a GPU, less
what was there when the model had been loaded and had made one window. "bounded" is `pipe(...)` as it is, with
`output_type="latent"`, and `stream_latents` into `save_audio`, as `audiox generate` does it. "whole" runs all windows at
a time and decodes all latents at once. Without --model it is the small random model, of the released shapes.

What may grow with the length: latents (about 5 kB a second), the contexts of videos (one for each window), and what the
allocator keeps. The bounded curve is flat where it grows by no more than that.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import save_audio, save_video
from audiox_diffusers.random_model import create_random_pipeline
from audiox_diffusers.scenes import random_scene


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(seconds: float, whole: bool, steps: int, video: str | None, model: str | None) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = (AudioXPipeline.from_pretrained(model) if model else create_random_pipeline()).to(device)
    pipe.set_progress_bar_config(disable=True)
    rate = pipe.vae.config.sampling_rate
    kwargs = {"prompt": "rain", "video": video, "num_inference_steps": steps, "output_type": "latent"}

    def make(length: float, path: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        batch = {"window_batch_size": 10**6} if whole else {}
        latents = pipe(audio_length_in_s=length, generator=generator, **kwargs, **batch).audios
        samples = round(length * rate)
        if whole:
            with torch.no_grad():
                save_audio(path, pipe.vae.decode(latents).sample[0, :, :samples].clamp(-1, 1), rate)
        else:
            pieces = pipe.stream_latents(latents, samples)
            save_audio(path, (np.clip(piece[0], -1, 1) for piece in pieces), rate)

    with tempfile.TemporaryDirectory() as folder:
        make(10.0, Path(folder) / "window.wav")
        before = peak_bytes(device)
        make(seconds, Path(folder) / "long.wav")
    return peak_bytes(device) - before


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of long sounds, in MB above that of one window.")
    parser.add_argument("--seconds", type=float, nargs="+", default=[30, 120, 600])
    parser.add_argument("--whole", type=float, nargs="*", default=[30, 120], help="lengths to make all at once too")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--video", action="store_true", help="with a video as long as the sound")
    parser.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--one", nargs=2, metavar=("SECONDS", "HOW"), help=argparse.SUPPRESS)
    parser.add_argument("--clip", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(float(args.one[0]), args.one[1] == "whole", args.steps, args.clip, args.model))
        return

    with tempfile.TemporaryDirectory() as folder:
        shared = ["--steps", str(args.steps), *(["--model", args.model] if args.model else [])]
        if args.video:
            clip = Path(folder) / "clip.mp4"
            save_video(clip, random_scene(0, max(args.seconds)).frames(fps=5), fps=5)
            shared += ["--clip", str(clip)]
        print("| seconds | bounded, MB | whole, MB | whole / bounded |\n|---|---|---|---|")
        for seconds in args.seconds:
            peaks = []
            for how in ("bounded", "whole")[: 1 + (seconds in args.whole)]:
                command = [sys.executable, __file__, "--one", str(seconds), how, *shared]
                peaks.append(int(subprocess.check_output(command, text=True).split()[-1]) / 1e6)
            cells = [f"{peak:.0f}" for peak in peaks]
            cells += [f"{peaks[1] / max(peaks[0], 1):.1f}"] if len(peaks) == 2 else ["", ""]
            print(f"| {seconds:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
