"""
Where the time of a clip goes: text, video, conditioner, one guided step of the loop, VAE; and the peak memory.

    python benchmarks/clip_parts.py [--model full|small] [--steps 100] [--dtype float32]

One clip of a window's length, asked for by text and video. "full" is AudioX at its released size with random weights,
which needs 8 GB in float32; "small" is `audiox_diffusers.small_model`. The loop is counted as `--steps` times the
median of three guided steps. Runs on the GPU where there is one.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from model_sizes import components

from audiox_diffusers import AudioXDPMSolverSDEScheduler, AudioXPipeline
from audiox_diffusers.models import AudioXContext
from audiox_diffusers.random_model import create_tokenizer
from audiox_diffusers.small_model import create_small_pipeline


def create_full_pipeline() -> AudioXPipeline:
    pipe = AudioXPipeline(
        **components("audiox", "cpu"), scheduler=AudioXDPMSolverSDEScheduler(), tokenizer=create_tokenizer()
    )
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipe


def peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e9


@torch.no_grad()
def measure(pipe: AudioXPipeline, steps: int) -> None:
    device, seconds = pipe.device, {}

    def timed(name: str, run: Callable, rounds: int = 1):
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            result = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        seconds[name] = statistics.median(times)
        return result

    config = pipe.conditioner.config
    video = torch.randint(0, 256, (config.num_video_frames, 3, 96, 96), dtype=torch.uint8)
    text = timed("text encoder", lambda: pipe.encode_prompt(["rain on a tin roof"], device=device)[0])
    frames = timed("image encoder", lambda: pipe.encode_video(video, device=device))
    silence = torch.zeros(1, config.latent_channels, config.num_audio_latents, device=device, dtype=text.dtype)
    context = timed(
        "conditioner",
        lambda: pipe.conditioner(text_embeds=text, video_embeds=frames, audio_latents=silence, return_dict=False)[0],
    )
    transformer = pipe.transformer
    latents = torch.randn(1, transformer.config.in_channels, transformer.config.sample_size, device=device)
    both = torch.cat((latents, latents)).to(transformer.dtype)
    context = AudioXContext(context.to(transformer.dtype))
    timestep = torch.full((2,), 0.5, device=device)
    transformer(both, timestep, context)
    timed("guided step", lambda: transformer(both, timestep, context), rounds=3)
    timed("VAE decoder", lambda: pipe.vae.decode(latents))

    seconds[f"loop of {steps} steps"] = steps * seconds["guided step"]
    total = sum(value for name, value in seconds.items() if name != "guided step")
    print(
        f"{torch.get_num_threads()} threads, {device}, {transformer.dtype}; a clip of "
        f"{pipe.window_samples / pipe.vae.config.sampling_rate:.1f} s takes {total:.1f} s\n"
    )
    print("| part | seconds | share |\n|---|---|---|")
    for name, value in seconds.items():
        share = "" if name == "guided step" else f"{100 * value / total:.1f} %"
        print(f"| {name} | {value:.3g} | {share} |")
    print(f"\npeak memory {peak_gigabytes(device):.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("full", "small"), default="full")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    args = parser.parse_args()
    pipe = create_full_pipeline() if args.model == "full" else create_small_pipeline()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe.to(device)
    if args.dtype != "float32":
        pipe.to(getattr(torch, args.dtype))
        # As `from_pretrained` leaves them.
        pipe.vae.decoder.float()
        pipe.transformer.time_proj.float()
    measure(pipe, args.steps)


if __name__ == "__main__":
    main()
