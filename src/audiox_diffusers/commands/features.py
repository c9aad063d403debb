"""`audiox features`: what a model sees in videos, computed once for many sounds."""

import sys
import time
from argparse import Namespace
from pathlib import Path

import torch

from ..cli import one_line
from ..media import load_video
from ..media.files import check_target
from ..pipelines import AudioXPipeline, save_features
from .loading import check_model, load_pipeline, read_placement
from .quiet import quiet_libraries

# What the embeddings of a video do not need.
LEFT_OUT = dict.fromkeys(("transformer", "vae", "text_encoder", "tokenizer", "scheduler"))


def run(args: Namespace) -> int:
    """`audiox features`; the exit status."""
    videos, output = [Path(video) for video in args.videos], Path(args.output)
    with quiet_libraries():
        if len(videos) > 1 or output.is_dir():
            return _run_folder(videos, output, args)
        return _run_once(videos[0], output, args)


def _run_once(video: Path, output: Path, args: Namespace) -> int:
    device, dtype = read_placement(args)
    if output.suffix != ".safetensors":
        raise ValueError(f"output {output}: must be a .safetensors file, or a folder that exists")
    check_target(output)
    check_model(args.model)
    load_video(video, duration=0.1)

    pipe, loading = load_pipeline(args.model, device, dtype, **LEFT_OUT)
    line, _, seconds = write(pipe, video, output)
    print(f"{line}; loaded in {loading:.1f} s, encoded in {seconds:.1f} s")
    return 0


def _run_folder(videos: list[Path], folder: Path, args: Namespace) -> int:
    """All videos are checked before the model is loaded. What then fails in one leaves the others alone."""
    device, dtype = read_placement(args)
    if folder.suffix == ".safetensors":
        raise ValueError(f"output {folder}: several videos need a folder")
    outputs: dict[Path, Path] = {}
    for video in videos:
        output = folder / f"{video.stem}.safetensors"
        if output in outputs:
            raise ValueError(f"output {output}: would be that of both {outputs[output]} and {video}")
        outputs[output] = video
    check_target(folder / "features" if folder.exists() else folder)
    check_model(args.model)
    missing = {output: video for output, video in outputs.items() if not output.exists()}
    for video in missing.values():
        load_video(video, duration=0.1)
    folder.mkdir(exist_ok=True)

    written = failed = tokens = 0
    loading = encoding = 0.0
    if missing:
        pipe, loading = load_pipeline(args.model, device, dtype, **LEFT_OUT)
    for output, video in missing.items():
        try:
            line, count, seconds = write(pipe, video, output)
        except (ValueError, OSError) as error:
            print(f"audiox: error: {one_line(error)}", file=sys.stderr)
            failed += 1
        else:
            print(f"{line}; encoded in {seconds:.1f} s", flush=True)
            written, tokens, encoding = written + 1, tokens + count, encoding + seconds
    summary = f"wrote {written}, skipped {len(outputs) - len(missing)}, failed {failed}; {tokens} tokens"
    print(f"{summary}; loaded in {loading:.1f} s, encoded in {encoding:.1f} s")
    return 2 if failed else 0


@torch.no_grad()
def write(pipe: AudioXPipeline, video: Path, output: Path) -> tuple[str, int, float]:
    """Write the features of one video; what was written in a line, its tokens, and the seconds that took."""
    start = time.perf_counter()
    video_embeds = pipe.encode_video(video)
    if video_embeds is None:
        raise ValueError(f"{video}: black throughout, which AudioX takes for no video")
    sync_embeds = pipe.encode_sync(video)

    counts = {"video": video_embeds[0, ..., 0].numel()}
    if sync_embeds is not None:
        counts["sync"] = sync_embeds.shape[1]
        sync_embeds = sync_embeds[0]
    save_features(output, video_embeds[0], sync_embeds)
    told = " and ".join(f"{count} {kind} tokens" for kind, count in counts.items())
    return f"wrote {output}: {told}", sum(counts.values()), time.perf_counter() - start
