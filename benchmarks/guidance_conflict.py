"""
Which prompt a model follows when caption and video disagree, for several kinds of guidance.

Each video shows one to three events of one class, and the caption names another class. A sound counts for the caption
or for the video if the bench's classifier finds that class.

    python benchmarks/guidance_conflict.py
"""

from typing import Any

import numpy as np
import torch
from common import create_parser
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench import Bench
from audiox_diffusers.bench.classifier import CLASSES
from audiox_diffusers.bench.items import Item
from audiox_diffusers.bench.run import open_bench
from audiox_diffusers.embedded import EMBEDDED_MODEL

SETTINGS = {
    **{f"`guidance_scale={w:g}`": {"guidance_scale": w} for w in (1.0, 3.0, 7.0)},
    **{f"`{{'text': {w:g}}}`": {"guidance_scale": {"text": w}} for w in (0.0, 2.0, 3.0, 5.0, 7.0)},
    **{f"`{{'video': {w:g}}}`": {"guidance_scale": {"video": w}} for w in (0.0, 2.0, 3.0, 5.0, 7.0)},
    "`{'text': 3, 'video': 3}`": {"guidance_scale": {"text": 3.0, "video": 3.0}},
    "`{'text': 5, 'video': 0}`": {"guidance_scale": {"text": 5.0, "video": 0.0}},
    "3, `guidance_interval=(0.3, 0.9)`": {"guidance_scale": 3.0, "guidance_interval": (0.3, 0.9)},
    "APG, scale 3, momentum -0.5": {
        "guider": AdaptiveProjectedGuidance(
            guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5, adaptive_projected_guidance_rescale=0.0
        )
    },
    "CFG-Zero*, scale 3": {"guider": ClassifierFreeZeroStarGuidance(guidance_scale=3.0)},
}
BATCH = 8


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="name, folder or Hub id (default: audiox-tiny)")
    parser.add_argument("--count", type=int, default=40, help="number of scenes (default: 40)")
    parser.add_argument("--steps", type=int, help="number of denoising steps (default: the model's own)")
    args = parser.parse_args()

    pipe = AudioXPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    bench = open_bench(pipe, args.count, None)
    items = []
    for index in range(args.count):
        shown, told = bench.one_class(index), bench.one_class(index + 1 + index // len(CLASSES))
        items.append((shown, told, Item(shown, index, prompt=told.caption(), video=bench.frames(shown))))

    print("| guidance | follows the caption | follows the video | neither |")
    print("|---|---|---|---|")
    for name, options in SETTINGS.items():
        caption = video = 0
        for first in range(0, len(items), BATCH):
            batch = items[first : first + BATCH]
            for (shown, told, _), sound in zip(batch, generate(pipe, bench, batch, args.steps, options), strict=True):
                heard = bench.classifier.classify(bench.preprocess(sound))
                caption += heard == told.events[0].sound
                video += heard == shown.events[0].sound
        neither = len(items) - caption - video
        print(f"| {name} | {' | '.join(f'{n / len(items):.2f}' for n in (caption, video, neither))} |", flush=True)


def generate(
    pipe: AudioXPipeline, bench: Bench, batch: list, steps: int | None, options: dict[str, Any]
) -> np.ndarray:
    """Return the waveforms `[B, channels, samples]` of some items."""
    return pipe(
        [item.prompt for _, _, item in batch],
        video=[item.video for _, _, item in batch],
        num_inference_steps=steps,
        audio_length_in_s=bench.seconds,
        generator=[torch.Generator().manual_seed(item.noise) for _, _, item in batch],
        **options,
    ).audios


if __name__ == "__main__":
    main()
