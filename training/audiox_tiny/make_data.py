"""
Write the training data of audiox-tiny as a Parquet file that `datasets` can stream:

    python training/audiox_tiny/make_data.py data.parquet --sounds sounds

It has rendered scenes (`audiox_diffusers.scenes`) with sound, video, picture and caption, and the free sounds of
`training/free_sounds/make_sounds.py` with their captions. It depends on `--seed` alone, which must not be a seed of the
bench.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from audiox_diffusers.bench.classifier import CLASSES
from audiox_diffusers.bench.items import BENCH_SEED
from audiox_diffusers.media import save_audio, save_video
from audiox_diffusers.scenes import LASTING, Event, Scene, random_scene, scene_seed

SECONDS = 4.0  # length of the model's window
SAMPLING_RATE = 16000
FAINT = 3e-3  # standard deviation of the noise in silent scenes, -50 dB of full scale
ROWS = 64  # per row group, which is read at once
SCHEMA = pa.schema(
    [
        ("audio", pa.binary()),
        ("video", pa.binary()),
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("task", pa.string()),
        ("audio_prompt", pa.binary()),
    ]
)


def as_file(save, suffix: str, *args, **kwargs) -> bytes:
    """Return the bytes that a function writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{suffix}")
        save(path, *args, **kwargs)
        return path.read_bytes()


def as_flac(sound: np.ndarray) -> bytes:
    return as_file(save_audio, ".flac", sound, SAMPLING_RATE)


def sound_of(scene: Scene) -> np.ndarray:
    """Render the sound. Silent scenes get faint noise, because training skips digital silence."""
    if scene.events:
        return scene.audio(SAMPLING_RATE)
    noise = np.random.default_rng([scene.seed, 3]).normal(0, FAINT, (1, round(scene.seconds * SAMPLING_RATE)))
    return noise.astype(np.float32)


def picture_of(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene.picture()).save(buffer, "PNG")
    return buffer.getvalue()


def whole(scene: Scene) -> dict:
    """Return a row with all modalities of a scene."""
    row = {"audio": as_flac(sound_of(scene)), "video": as_file(save_video, ".mp4", scene.frames(), fps=25)}
    if scene.events:
        row["image"] = picture_of(scene)
    return {**row, "caption": scene.caption()}


def continued(scene: Scene) -> dict:
    """Return a row in which the second half of a scene continues the first."""
    before, after = np.split(sound_of(scene), 2, axis=1)
    return {"audio": as_flac(after), "audio_prompt": as_flac(before), "task": "completion"}


def scenes(count: int, seed: int) -> Iterator[dict]:
    """
    Yield rows for scenes. Of each 20, 13 are of any classes, 3 of one class, 2 for completion, 1 with a sound from start
    to end, and 1 is silent.
    """
    for index in range(count):
        number = scene_seed(seed, index)
        kind, name = index % 20, CLASSES[index // 20 % len(CLASSES)]
        if kind < 13:
            yield whole(random_scene(number, SECONDS))
        elif kind < 16:
            name = CLASSES[(index // 20 * 3 + kind) % len(CLASSES)]
            yield whole(random_scene(number, SECONDS, max_events=3, classes=[name]))
        elif kind < 18:
            name = CLASSES[(index // 20 * 2 + kind) % len(CLASSES)]
            yield continued(random_scene(number, 2 * SECONDS, max_events=6, classes=[name]))
        elif kind < 19:
            name = sorted(LASTING)[index // 20 % len(LASTING)]
            yield whole(Scene([Event(name, 0.0, SECONDS)], SECONDS, number))
        else:
            yield whole(Scene([], SECONDS, number))


def recordings(folder: Path) -> Iterator[dict]:
    """Yield rows for the free sounds."""
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {"audio": (folder / row["file_name"]).read_bytes(), "caption": row["caption"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the training data of audiox-tiny.", allow_abbrev=False)
    parser.add_argument("output", type=Path, help="Parquet file to write")
    parser.add_argument("--count", type=int, default=4000, help="number of scenes (default: 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sounds", type=Path, help="folder that make_sounds.py wrote")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count must be at least 1, got {args.count}")
    if BENCH_SEED <= args.seed < BENCH_SEED + 5:
        parser.error(f"--seed {args.seed} is a seed of the bench, do not train on its scenes")
    rows = list(scenes(args.count, args.seed))
    if args.sounds is not None:
        rows += recordings(args.sounds)
    np.random.default_rng(args.seed).shuffle(rows)
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, args.output, row_group_size=ROWS)
    print(f"wrote {len(rows)} records to {args.output}")


if __name__ == "__main__":
    main()
