"""
Measure the time and memory of each part of generating a clip: text, video, conditioner, guided steps, VAE.

    python benchmarks/clip_parts.py [--model full|tiny|small] [--steps 100] [--dtype float32]

The clip has the length of a window, with text and video as prompts. "full" is AudioX at its released size with random
weights, which needs 8 GB in float32; "tiny" is audiox-tiny; "small" is the untrained small model. The loop is `--steps`
times the median of three guided steps. Memory is that of a part's weights, and the peak in addition to what is in use when
the part starts. Runs on a GPU if there is one, otherwise on Linux only.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import create_parser, find_device, process_gigabytes
from model_sizes import components

from audiox_diffusers import AudioXDPMSolverSDEScheduler, AudioXPipeline
from audiox_diffusers.testing import create_small_pipeline, create_tokenizer


def create_full_pipeline() -> AudioXPipeline:
    pipe = AudioXPipeline(
        **components("audiox", "cpu"), scheduler=AudioXDPMSolverSDEScheduler(), tokenizer=create_tokenizer()
    )
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipe


MODELS = {
    "full": create_full_pipeline,
    "tiny": lambda: AudioXPipeline.from_pretrained("audiox-tiny"),
    "small": create_small_pipeline,
}


def gigabytes(device: torch.device, peak: bool) -> float:
    """Return the memory of the process, or that allocated on the GPU, now or at the peak since `reset_peak`."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 1e9
    return process_gigabytes("VmHWM" if peak else "VmRSS")


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


@torch.no_grad()
def measure(pipe: AudioXPipeline, steps: int) -> None:
    device, seconds, memory, peak = pipe.device, {}, {}, gigabytes(pipe.device, peak=True)

    def timed(name: str, part: torch.nn.Module, run: Callable, rounds: int = 1):
        nonlocal peak
        times, before = [], gigabytes(device, peak=False)
        reset_peak(device)
        for _ in range(rounds):
            started = time.perf_counter()
            result = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        seconds[name] = statistics.median(times)
        weights = sum(weight.numel() * weight.element_size() for weight in part.parameters()) / 1e9
        memory[name] = weights, gigabytes(device, peak=True) - before
        peak = max(peak, gigabytes(device, peak=True))
        return result

    config = pipe.conditioner.config
    video = torch.randint(0, 256, (config.num_video_frames, 3, 96, 96), dtype=torch.uint8)
    text = timed(
        "text encoder",
        pipe.text_encoder,
        lambda: pipe.encode_prompt(["rain on a tin roof"], device=device)[0],
    )
    frames = timed("image encoder", pipe.image_encoder, lambda: pipe.encode_video(video, device=device))
    silence = torch.zeros(1, config.latent_channels, config.num_audio_latents, device=device, dtype=text.dtype)
    context = timed(
        "conditioner",
        pipe.conditioner,
        lambda: pipe.conditioner(text_embeds=text, video_embeds=frames, audio_latents=silence, return_dict=False)[0],
    )
    transformer = pipe.transformer
    latents = torch.randn(1, transformer.config.in_channels, transformer.config.sample_size, device=device)
    both = torch.cat((latents, latents)).to(transformer.dtype)
    context = transformer.project_context(context.to(transformer.dtype))
    timestep = torch.full((2,), 0.5, device=device)
    transformer(both, timestep, context)
    timed("guided step", transformer, lambda: transformer(both, timestep, context), rounds=3)
    seconds[f"loop of {steps} steps"] = steps * seconds["guided step"]
    timed("VAE decoder", pipe.vae.decoder, lambda: pipe.vae.decode(latents))
    pipe.vae.enable_tiling()
    timed("VAE decoder, in tiles", pipe.vae.decoder, lambda: pipe.vae.decode(latents))

    counted = {name: value for name, value in seconds.items() if name not in ("guided step", "VAE decoder, in tiles")}
    total = sum(counted.values())
    print(
        f"{torch.get_num_threads()} threads, {device}, {transformer.dtype}; a clip of "
        f"{pipe.window_samples / pipe.vae.config.sampling_rate:.1f} s takes {total:.1f} s\n"
    )
    print("| part | seconds | share | weights, GB | memory in use, GB |\n|---|---|---|---|---|")
    for name, value in seconds.items():
        share = f"{100 * value / total:.1f} %" if name in counted else ""
        columns = " | ".join(f"{size:.2f}" for size in memory[name]) if name in memory else " | "
        print(f"| {name} | {value:.3g} | {share} | {columns} |")
    print(f"\npeak memory {peak:.1f} GB")


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="full", help="model to measure (default: full)")
    parser.add_argument("--steps", type=int, default=100, help="denoising steps (default: 100)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    args = parser.parse_args()
    pipe = MODELS[args.model]()
    pipe.to(find_device())
    if args.dtype != "float32":
        pipe.to(getattr(torch, args.dtype))
        # As `from_pretrained` does.
        pipe.vae.decoder.float()
        pipe.transformer.time_proj.float()
    measure(pipe, args.steps)


if __name__ == "__main__":
    main()
