"""
Write random phrases of music as a dataset folder:

    python training/audiox_tiny/make_music.py music --count 2000

Each has a WAV file and its caption. `music.py` lists what it needs and where the instruments come from.
"""

import argparse
import json
from pathlib import Path

from music import Player, random_phrase

from audiox_diffusers.atomic import replacing
from audiox_diffusers.media import save_audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--count", type=int, default=2000, help="number of phrases (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first phrase (default: 0)")
    parser.add_argument("--held-out", action="store_true", help="use the instruments that no model is trained on")
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder}: exists")
    player = Player()
    with replacing(args.folder) as temporary:
        temporary.mkdir()
        with open(temporary / "metadata.jsonl", "w", encoding="utf-8") as metadata:
            for index in range(args.count):
                phrase = random_phrase(args.seed + index, held_out=args.held_out)
                name = f"{index:05}.wav"
                save_audio(temporary / name, player.play(phrase), player.sampling_rate)
                metadata.write(json.dumps({"file_name": name, "caption": phrase.caption}) + "\n")
    print(f"wrote {args.count} phrases to {args.folder}")


if __name__ == "__main__":
    main()
