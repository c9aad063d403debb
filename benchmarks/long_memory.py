"""
Measure the peak memory of generating long sounds into a file, in windows and tiles or all at once.

    python benchmarks/long_memory.py [--seconds 30 120 600] [--whole 30 120] [--video] [--model FOLDER]

Each value comes from a new process. It is the peak memory of the process, or of torch on a GPU, in addition to that after
loading the model and generating one window. "bounded" generates latents and decodes them with `stream_latents` into
`save_audio`, as `audiox generate` does. "whole" runs all windows in one batch and decodes all latents at once.

Even bounded memory grows slightly with the length: latents take about 5 kB per second, videos have a context for each
window, and the allocator keeps memory.
"""

import resource
import tempfile
from argparse import SUPPRESS
from pathlib import Path

import numpy as np
import torch
from common import create_parser, find_device, quiet, run_process

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.media import save_audio, save_video
from audiox_diffusers.scenes import random_scene
from audiox_diffusers.testing import create_random_pipeline


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(seconds: float, whole: bool, steps: int, video: str | None, model: str | None) -> int:
    device = find_device()
    pipe = quiet(AudioXPipeline.from_pretrained(model) if model else create_random_pipeline()).to(device)
    rate = pipe.vae.config.sampling_rate
    kwargs = {"prompt": "rain", "video": video, "num_inference_steps": steps, "output_type": "latent"}

    def generate(length: float, path: Path) -> None:
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
        generate(10.0, Path(folder) / "window.wav")
        before = peak_bytes(device)
        generate(seconds, Path(folder) / "long.wav")
    return peak_bytes(device) - before


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[30, 120, 600], help="lengths (default: 30 120 600)"
    )
    parser.add_argument(
        "--whole", type=float, nargs="*", default=[30, 120], help="lengths to generate also at once (default: 30 120)"
    )
    parser.add_argument("--steps", type=int, default=2, help="denoising steps (default: 2)")
    parser.add_argument("--video", action="store_true", help="use a video of the same length as a prompt")
    parser.add_argument("--model", metavar="FOLDER", help="pipeline to measure (default: the random small model)")
    parser.add_argument("--one", nargs=2, metavar=("SECONDS", "HOW"), help=SUPPRESS)
    parser.add_argument("--clip", help=SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(float(args.one[0]), args.one[1] == "whole", args.steps, args.clip, args.model))
        return

    with tempfile.TemporaryDirectory() as folder:
        shared = ["--steps", args.steps, *(["--model", args.model] if args.model else [])]
        if args.video:
            clip = Path(folder) / "clip.mp4"
            save_video(clip, random_scene(0, max(args.seconds)).frames(fps=5), fps=5)
            shared += ["--clip", clip]
        print("| seconds | bounded, MB | whole, MB | whole / bounded |\n|---|---|---|---|")
        for seconds in args.seconds:
            peaks = []
            for how in ("bounded", "whole")[: 1 + (seconds in args.whole)]:
                (peak,) = run_process("--one", seconds, how, *shared)
                peaks.append(peak / 1e6)
            cells = [f"{peak:.0f}" for peak in peaks]
            cells += [f"{peaks[1] / max(peaks[0], 1):.1f}"] if len(peaks) == 2 else ["", ""]
            print(f"| {seconds:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
