"""
Write a trained pipeline into the package, in half precision:

    python training/audiox_tiny/export.py trained
    python training/audiox_tiny/export.py student --name audiox-tiny-turbo

It replaces a model of the package, except for its card and the table of sounds. Of the few-step student, only the parts that
differ from its teacher are written.
"""

import argparse
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.atomic import remove
from audiox_diffusers.embedded import EMBEDDED_FOLDERS, EMBEDDED_MODEL, EMBEDDED_STUDENT

STUDENT_PARTS = ("transformer", "scheduler", "model_index.json")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a trained pipeline into the package.", allow_abbrev=False)
    parser.add_argument("source", type=Path, help="folder of the trained pipeline")
    parser.add_argument("--name", choices=EMBEDDED_FOLDERS, default=EMBEDDED_MODEL, help="model to replace")
    parser.add_argument("--output", type=Path, help="folder to write (default: that of the model in the package)")
    args = parser.parse_args()
    output = args.output or EMBEDDED_FOLDERS[args.name]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write(args.source, folder)
        if args.name == EMBEDDED_STUDENT:
            for path in folder.iterdir():
                if path.name not in STUDENT_PARTS:
                    remove(path)
        shutil.copytree(folder, output, dirs_exist_ok=True)


def write(source: Path, folder: Path) -> None:
    pipe = AudioXPipeline.from_pretrained(source)
    pipe.to(torch.float16).save_pretrained(folder)
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        # transformers loads the dtype of the config, diffusers float32.
        if "dtype" in config:
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
