"""
Write a trained pipeline into the package, in half precision:

    python training/audiox_tiny/export.py trained

It replaces the embedded model, except for its card and the table of sounds.
"""

import argparse
import json
from pathlib import Path

import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.embedded import EMBEDDED_MODEL

FOLDER = Path(__file__).parents[2] / "src" / "audiox_diffusers" / "embedded" / EMBEDDED_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a trained pipeline into the package.", allow_abbrev=False)
    parser.add_argument("source", type=Path, help="folder of the trained pipeline")
    parser.add_argument(
        "--output", type=Path, default=FOLDER, help="folder to write (default: that of the embedded model)"
    )
    args = parser.parse_args()
    pipe = AudioXPipeline.from_pretrained(args.source)
    pipe.to(torch.float16).save_pretrained(args.output)
    for path in (args.output / "model_index.json", *args.output.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        # transformers loads the dtype of the config, diffusers float32.
        if "dtype" in config:
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
