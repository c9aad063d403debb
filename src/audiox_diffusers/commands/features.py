"""`audiox features`."""

import time
from argparse import Namespace
from pathlib import Path

import torch

from ..atomic import check_target
from ..generation.loading import check_model, load_pipeline, read_placement
from ..media import load_video
from ..messages import describe
from ..pipelines import AudioXPipeline, save_features
from .checks import feature_files
from .quiet import quiet_libraries
from .terminal import error, say

# Components that the features of a video do not need.
UNUSED = dict.fromkeys(("transformer", "vae", "text_encoder", "tokenizer", "scheduler"))


def run(args: Namespace) -> int:
    """Run `audiox features` and return the exit code."""
    videos, output = [Path(video) for video in args.videos], Path(args.output)
    with quiet_libraries():
        if len(videos) > 1 or output.is_dir():
            return _run_folder(videos, output, args)
        return _run_single(videos[0], output, args)


def _run_single(video: Path, output: Path, args: Namespace) -> int:
    placement = read_placement(args)
    check_model(args.model)
    load_video(video, duration=0.1)

    pipe, loading = load_pipeline(args.model, placement, **UNUSED)
    line, _, seconds = write(pipe, video, output)
    say(f"{line}; loaded in {loading:.1f} s, encoded in {seconds:.1f} s")
    return 0


def _run_folder(videos: list[Path], folder: Path, args: Namespace) -> int:
    """Encode the videos whose files are missing. One that fails leaves the others alone."""
    placement = read_placement(args)
    check_model(args.model)
    files = feature_files(videos, folder)
    missing = {file: video for file, video in files.items() if not file.is_file()}
    readable: dict[Path, Path] = {}
    for file, video in missing.items():
        try:
            check_target(file if folder.exists() else folder)
            load_video(video, duration=0.1)
        except Exception as exception:
            error(describe(exception))
        else:
            readable[file] = video

    written = tokens = 0
    loading = encoding = 0.0
    if readable:
        folder.mkdir(exist_ok=True)
        pipe, loading = load_pipeline(args.model, placement, **UNUSED)
    for file, video in readable.items():
        try:
            line, count, seconds = write(pipe, video, file)
        except Exception as exception:
            error(describe(exception))
        else:
            say(f"{line}; encoded in {seconds:.1f} s")
            written, tokens, encoding = written + 1, tokens + count, encoding + seconds
    failed = len(missing) - written
    summary = f"wrote {written}, skipped {len(files) - len(missing)}, failed {failed}; {tokens} tokens"
    say(f"{summary}; loaded in {loading:.1f} s, encoded in {encoding:.1f} s")
    return 2 if failed else 0


@torch.no_grad()
def write(pipe: AudioXPipeline, video: Path, output: Path) -> tuple[str, int, float]:
    """Write the features of a video; return a line about them, the number of tokens, and the seconds it took."""
    start = time.perf_counter()
    video_embeds = pipe.encode_video(video)
    if video_embeds is None:
        raise ValueError(f"{video}: the video is black throughout, which AudioX treats as no video")
    sync_embeds = pipe.encode_sync(video)

    counts = {"video": video_embeds[0, ..., 0].numel()}
    if sync_embeds is not None:
        counts["sync"] = sync_embeds.shape[1]
        sync_embeds = sync_embeds[0]
    save_features(output, video_embeds[0], sync_embeds)
    summary = " and ".join(f"{count} {kind} tokens" for kind, count in counts.items())
    return f"wrote {output}: {summary}", sum(counts.values()), time.perf_counter() - start
