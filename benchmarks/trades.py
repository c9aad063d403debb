"""
Measure speed and deviation of faster settings for whole generations with audiox-tiny, on a CPU.

    python benchmarks/trades.py [--seeds 2] [--only WORD ...]

All settings generate the same sounds in turns, from text to waveform: four prompts with some seeds each. The speed is the
median over the sounds of the speed relative to the default. Deviations are means over the sounds: for latents, the root
mean square of the difference relative to that of the reference; for sounds, `log_mel_distance`. References are the default
(float32, 25 steps, guidance 3, order 3, eta 0) and the same with 100 steps. "another seed" is the deviation between two
sounds for one prompt.

The transformer has only 3 M parameters, so Python takes a good part of the time; `step_variants.py` measures the released
size. Settings with torchao are skipped if it is not installed.
"""

import ast
import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from common import create_parser, hardware, quiet, seeded
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.utils import is_torchao_available

from audiox_diffusers import AudioXDPMSolverSDEScheduler, AudioXPipeline
from audiox_diffusers.media import log_mel_distance
from audiox_diffusers.training.methods.quantization import quantization_config

MODEL = "audiox-tiny"
PROMPTS = ("three bell strikes", "rain", "a bird, then a drum", "an engine")
STEPS = 25
REFERENCE_STEPS = 100

# A pipeline and the arguments of its call.
Trade = tuple[AudioXPipeline, dict]


def load(**kwargs) -> AudioXPipeline:
    return quiet(AudioXPipeline.from_pretrained(MODEL, **kwargs))


def steps(count: int, order: int) -> Trade:
    pipe = load()
    pipe.scheduler = AudioXDPMSolverSDEScheduler.from_config(pipe.scheduler.config, solver_order=order)
    return pipe, {"num_inference_steps": count}


def guided(first: int, end: int) -> Trade:
    """Use guidance only in the steps from `first` to before `end`. The callback sets it for the next step."""
    pipe = load()
    scale = pipe.config.default_guidance_scale

    def at(step: int) -> float:
        return scale if first <= step < end else 1.0

    def set_guidance(pipe: AudioXPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipe._guidance_scale = at(step + 1)
        return tensors

    return pipe, {"guidance_scale": at(0), "callback_on_step_end": set_guidance}


def cached(config) -> Trade:
    pipe = load()
    pipe.transformer.enable_cache(config)
    return pipe, {}


def mag_cached(threshold: float) -> Trade:
    """Calibrate on one sound."""
    pipe, printed = load(), io.StringIO()
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=STEPS, calibrate=True))
    with contextlib.redirect_stdout(printed):
        pipe(PROMPTS[0], generator=seeded([100]), output_type="latent")
    pipe.transformer.disable_cache()
    ratios = ast.literal_eval(next(line for line in printed.getvalue().splitlines() if line.startswith("[1.0")))
    pipe.transformer.enable_cache(
        MagCacheConfig(num_inference_steps=STEPS, threshold=threshold, max_skip_steps=3, mag_ratios=ratios)
    )
    return pipe, {}


def taylor(interval: int) -> Trade:
    layers = [r"transformer_blocks\.\d+\.(attn1|attn2|ff)"]
    return cached(TaylorSeerCacheConfig(cache_interval=interval, cache_identifiers=layers))


def skipping(config_class: type, **kwargs) -> Trade:
    """Use a cache that skips attention at times below 0.9."""
    pipe = load()
    pipe.transformer.enable_cache(
        config_class(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0.0, 0.9),
            current_timestep_callback=lambda: pipe.scheduler.timesteps[pipe.scheduler.step_index].item(),
            **kwargs,
        )
    )
    return pipe, {}


def layerwise_casting() -> Trade:
    pipe = load()
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    return pipe, {}


def compiled() -> Trade:
    pipe = load()
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    return pipe, {}


TRADES: dict[str, Callable[[], Trade]] = {
    "default": lambda: (load(), {}),
    "bfloat16": lambda: (load(dtype=torch.bfloat16), {}),
    "bfloat16, transformer only": lambda: (load(dtype={"transformer": torch.bfloat16, "default": torch.float32}), {}),
    "float16": lambda: (load(dtype=torch.float16), {}),
    "transformer weights stored in float8": layerwise_casting,
    "compile_repeated_blocks()": compiled,
    "FirstBlockCache, threshold 0.1": lambda: cached(FirstBlockCacheConfig(threshold=0.1)),
    "FirstBlockCache, threshold 0.2": lambda: cached(FirstBlockCacheConfig(threshold=0.2)),
    "MagCache, threshold 0.06": lambda: mag_cached(0.06),
    "MagCache, threshold 0.2": lambda: mag_cached(0.2),
    "TaylorSeer, every 2nd step": lambda: taylor(2),
    "TaylorSeer, every 3rd step": lambda: taylor(3),
    "PyramidAttentionBroadcast": lambda: skipping(
        PyramidAttentionBroadcastConfig,
        cross_attention_block_skip_range=3,
        cross_attention_timestep_skip_range=(0.0, 0.9),
    ),
    "FasterCache, attention only": lambda: skipping(
        FasterCacheConfig, is_guidance_distilled=True, tensor_format="BCHW"
    ),
    "no guidance": lambda: (load(), {"guidance_scale": 1.0}),
    "guidance in the first half": lambda: guided(0, STEPS // 2),
    "guidance in the second half": lambda: guided(STEPS // 2, STEPS),
    "guidance in the middle half": lambda: guided(STEPS // 4, 3 * STEPS // 4),
}
if is_torchao_available():
    TRADES["torchao, int8 weights"] = lambda: (
        load(quantization_config=quantization_config("torchao_int8", torch.float32)),
        {},
    )
for count, order in itertools.product((10, STEPS, 50, REFERENCE_STEPS), (1, 2, 3)):
    if (count, order) != (STEPS, 3):
        TRADES[f"{count} steps, order {order}"] = lambda count=count, order=order: steps(count, order)


@torch.no_grad()
def generate(trade: Trade, prompt: str, seed: int) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return seconds, latents and sound."""
    pipe, kwargs = trade
    started = time.perf_counter()
    latents = pipe(prompt, generator=seeded([seed]), output_type="latent", **kwargs).audios
    sound = pipe.vae.decode(latents).sample[0]
    return time.perf_counter() - started, latents, sound


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="sounds for each prompt (default: 2)")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="only settings with one of these words in their names"
    )
    args = parser.parse_args()

    references = ("default", f"{REFERENCE_STEPS} steps, order 3")
    names = [name for name in TRADES if name in references or not args.only or any(word in name for word in args.only)]
    trades = {name: TRADES[name]() for name in names}
    for trade in trades.values():
        generate(trade, PROMPTS[0], 0)
    rate = trades["default"][0].vae.config.sampling_rate
    speeds: dict[str, list[float]] = {name: [] for name in names}
    deviations: dict[str, list[list[float]]] = {name: [] for name in (*names, "another seed")}
    for prompt, seed in itertools.product(PROMPTS, range(args.seeds)):
        results = {name: generate(trade, prompt, seed) for name, trade in trades.items()}
        for name in names:
            speeds[name].append(results["default"][0] / results[name][0])
        results["another seed"] = generate(trades["default"], prompt, 1000 + seed)
        for name, (_, latents, sound) in results.items():
            row = []
            for _, wanted, reference in (results[reference] for reference in references):
                row.append(((latents - wanted).square().mean() / wanted.square().mean()).sqrt().item())
                row.append(log_mel_distance(sound, reference, rate))
            deviations[name].append(row)

    print(f"{hardware()}, {len(PROMPTS) * args.seeds} sounds of {MODEL}\n")
    print(
        "| | speed | latents, from default | log-mel, from default | latents, from 100 steps | log-mel, from 100 steps |"
    )
    print("|---|---|---|---|---|---|")
    for name, rows in deviations.items():
        speed = f"{statistics.median(speeds[name]):.2f}" if name in speeds else ""
        print(f"| {name} | {speed} | " + " | ".join(f"{statistics.mean(c):.2g}" for c in zip(*rows)) + " |")


if __name__ == "__main__":
    main()
