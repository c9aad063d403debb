"""
Measure how many captions a model answers with silence.

    python training/audiox_tiny/measure_silence.py --model audiox-tiny

The 200 captions of `everyday_captions.txt` are in the wording of AudioCaps. They were written without regard to the words
that audiox-tiny was trained on. A sound is silent if its RMS level is below -50 dB of full scale.
"""

import argparse
from pathlib import Path

import numpy as np
from sampling import generate

from audiox_diffusers import AudioXPipeline

CAPTIONS = Path(__file__).with_name("everyday_captions.txt")
SECONDS = 4.0
SILENT = -50.0  # dB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="audiox-tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    pipe = AudioXPipeline.from_pretrained(args.model)
    captions = CAPTIONS.read_text("utf-8").splitlines()
    sounds = generate(pipe, captions, SECONDS, args.batch_size)
    levels = [10 * np.log10(np.square(sound).mean() + 1e-12) for sound in sounds]
    silent = [(level, caption) for level, caption in zip(levels, captions, strict=True) if level < SILENT]
    print(f"silent: {len(silent)} of {len(captions)}; median level {np.median(levels):.1f} dBFS")
    for level, caption in sorted(silent)[:20]:
        print(f"{level:.1f} dB  {caption}")


if __name__ == "__main__":
    main()
