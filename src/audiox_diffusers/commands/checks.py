"""Checks of a command's arguments, before anything heavy is imported."""

import os
from argparse import Namespace
from pathlib import Path

from ..atomic import check_target
from ..bench.options import VAE, check_tasks
from ..embedded import EMBEDDED_FOLDERS
from ..evaluation.metrics import choose, networks_to_save
from ..generation.guidance import Guidance
from ..generation.request import STDOUT, Request, read_request
from ..loaders.releases import RELEASES, is_known
from ..option_types import MAX_SEED
from ..pipelines.requests import check_request_paths

# The page of a demo, and what marks it as such.
DEMO_PAGE, DEMO_MARK = "index.html", '<meta name="generator" content="audiox demo">'

# Addresses that only this machine reaches.
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check_generate(args: Namespace) -> None:
    """Check the arguments of `audiox generate`."""
    if args.batch is None:
        if args.batch_size is not None:
            raise ValueError("--batch-size goes with --batch only")
        if args.prompt is not None and not args.prompt.strip() and not (args.video or args.image or args.audio):
            raise ValueError("--prompt is blank, and nothing else is given")
        check_single(args, read_request(args))
        return
    for name in ("prompt", "video", "image", "audio", "num"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} does not go with --batch")
    if args.output == str(STDOUT):
        raise ValueError("--batch needs a folder as --output, got -")
    check_model_name(args.model)
    Guidance.from_args(args).check()
    if args.batch != "-" and not Path(args.batch).exists():
        raise FileNotFoundError(f"{args.batch}: no such file")
    check_folder(Path(args.output))


def check_edit(args: Namespace) -> None:
    """Check the arguments of `audiox edit`."""
    if args.inpaint is None and args.extend is None and args.strength is None:
        raise ValueError("nothing to do: give --inpaint, --extend or --strength")
    if args.extend is not None and (args.inpaint is not None or args.strength is not None):
        raise ValueError("--extend does not go with --inpaint or --strength")
    check_single(args, read_request(args))


def check_single(args: Namespace, request: Request) -> None:
    """Check a request for one sound, or for `--num` sounds."""
    check_model_name(args.model)
    request.check()
    guidance = Guidance.from_args(args)
    guidance.check()
    guidance.check_weights(request)
    guidance.check_negatives(request)
    count = args.num or 1
    if request.seed + count - 1 > MAX_SEED:
        raise ValueError(f"the last seed must be below 2**64, got {request.seed} for the first of {count}")
    if request.output == STDOUT and count > 1:
        raise ValueError(f"--num {count} needs files as --output, got -")
    if list(request.inputs.values()).count(Path("-")) > 1:
        raise ValueError("only one file can be read from standard input")
    for output in numbered(request.output, count):
        if output != STDOUT:
            check_target(output)
    request.check_paths()


def numbered(output: Path, count: int) -> list[Path]:
    """Return the output files of `--num`: `out-1.wav`, `out-2.wav` and so on, or just `out.wav`."""
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, count + 1)]


def check_info(args: Namespace) -> None:
    """Check the arguments of `audiox info`."""
    check_request_paths({"audio": args.file})


def check_features(args: Namespace) -> None:
    """Check the arguments of `audiox features`."""
    check_model_name(args.model)
    videos, output = [Path(video) for video in args.videos], Path(args.output)
    if len(videos) == 1 and not output.is_dir():
        if output.suffix != ".safetensors":
            raise ValueError(f"output {output}: must be a .safetensors file or an existing folder")
        check_target(output)
    else:
        if output.suffix == ".safetensors":
            raise ValueError(f"output {output}: several videos need a folder")
        feature_files(videos, output)
        check_folder(output)
    for video in videos:
        if str(video) != "-" and not video.exists():
            raise FileNotFoundError(f"{video}: no such file")


def feature_files(videos: list[Path], folder: Path) -> dict[Path, Path]:
    """Return the video of each file in an output folder; `ValueError` if two videos would share a file."""
    files: dict[Path, Path] = {}
    for video in videos:
        file = folder / f"{video.stem}.safetensors"
        if file in files:
            raise ValueError(f"output {file}: would be written for both {files[file]} and {video}")
        files[file] = video
    return files


def check_demo(args: Namespace) -> None:
    """Check the arguments of `audiox demo`."""
    folder = Path(args.output)
    check_folder(folder)
    page = folder / DEMO_PAGE
    own = page.is_file() and DEMO_MARK in page.read_text(encoding="utf-8", errors="replace")
    if folder.is_dir() and any(folder.iterdir()) and not own:
        raise FileExistsError(f"--output {folder}: not an empty folder, and no demo; name another folder")


def check_bench(args: Namespace) -> None:
    """Check the arguments of `audiox bench`."""
    check_model_name(args.model)
    if args.sweep:
        for name in ("steps", "guidance", "guidance_interval", "guider", "eta", "clips"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} does not go with --sweep, which tries its own")
    Guidance(args.guidance, interval=args.guidance_interval, guider=args.guider).check()
    tasks = check_tasks(args.tasks, args.sweep)
    if args.clips is not None and VAE not in tasks:
        raise ValueError("--clips is for the task vae, which --tasks leaves out")
    for name in ("sounds", "clips"):
        value = getattr(args, name)
        if value is not None and not Path(value).is_dir():
            raise NotADirectoryError(f"--{name} {value}: no such folder")
        if value is not None and not any(Path(value).iterdir()):
            raise FileNotFoundError(f"--{name} {value}: an empty folder")
    if args.output is not None:
        check_folder(Path(args.output))


def check_evaluate(args: Namespace) -> None:
    """Check the arguments of `audiox evaluate`."""
    if (args.set is None) != (args.model is None):
        raise ValueError("--set and --model go together")
    if args.model is not None:
        check_model_name(args.model)
    for name in ("steps", "guidance", "seed"):
        if args.set is None and getattr(args, name) is not None:
            raise ValueError(f"--{name} is for the sounds that --set generates")
    if args.set is None and not Path(args.generated).is_dir():
        raise NotADirectoryError(f"GENERATED {args.generated}: no such folder")
    for name in ("reference", "captions", "videos", "weights", "set"):
        value = getattr(args, name)
        if value is not None and not Path(value).exists():
            raise FileNotFoundError(f"--{name} {value}: no such file or folder")
    for name in ("captions", "set"):
        value = getattr(args, name)
        if value is not None and not Path(value).is_file():
            raise ValueError(f"--{name} {value}: not a file")
    for name in ("videos", "weights"):
        value = getattr(args, name)
        if value is not None and not Path(value).is_dir():
            raise NotADirectoryError(f"--{name} {value}: not a folder")
    if args.reference is not None and not Path(args.reference).is_dir() and not args.reference.endswith(".npz"):
        raise ValueError(f"--reference {args.reference}: neither a folder nor a .npz file of statistics")
    if args.cache is not None and Path(args.cache).exists() and not Path(args.cache).is_dir():
        raise NotADirectoryError(f"--cache {args.cache}: not a folder")
    if args.save_statistics is not None and not args.save_statistics.endswith(".npz"):
        raise ValueError(f"--save-statistics {args.save_statistics}: must be a .npz file")
    folder = args.reference is not None and not args.reference.endswith(".npz")
    has = {"reference": args.reference is not None, "reference_files": folder, "pairs": folder}
    # Lines of a set can have captions and videos.
    has |= {name: getattr(args, name) is not None or args.set is not None for name in ("captions", "videos")}
    if args.metrics is not None:
        args.metrics = [name for item in args.metrics for name in item.split(",") if name]
    choose(args.metrics, has, saving=args.save_statistics is not None)
    if args.save_statistics is not None:
        networks_to_save(args.metrics)
    for value in (args.output, args.save_statistics):
        if value is not None:
            check_target(Path(value))


def check_serve(args: Namespace) -> None:
    """Check the arguments of `audiox serve`."""
    token = args.token if args.token is not None else os.environ.get("AUDIOX_TOKEN")
    if args.host not in LOOPBACK and not token:
        raise ValueError(f"--host {args.host}: other machines could use the server; give a --token, or AUDIOX_TOKEN")
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token or not token):
        raise ValueError("--token: must be printable ASCII characters without spaces")
    for model in args.model:
        check_model_name(model)
    for lora in args.lora or []:
        _check_adapter("--lora", lora)


def check_model_name(model: str) -> None:
    """Raise `FileNotFoundError` unless a model exists on this machine, has a known name, or can be a Hub id."""
    if not is_known(model) and not Path(model).exists() and not _can_be_hub_id(model):
        known = ", ".join([*EMBEDDED_FOLDERS, *RELEASES])
        raise FileNotFoundError(
            f"--model {model}: no such folder, and no model of that name. Use a folder, a Hub id such as OWNER/NAME, or"
            f" one of {known}"
        )


def _check_adapter(option: str, adapter: str) -> None:
    if not Path(adapter).exists() and not _can_be_hub_id(adapter):
        raise FileNotFoundError(f"{option} {adapter}: no such file or folder")


def _can_be_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", "."))


def check_folder(folder: Path) -> None:
    """Raise `OSError` unless files can be written to a folder, which is created if missing."""
    check_target(folder / "file" if folder.exists() else folder)


def check_convert(args: Namespace) -> None:
    """Check the arguments of `audiox convert`."""
    if args.source in EMBEDDED_FOLDERS:
        raise ValueError(f"{args.source}: is a diffusers model already")
    for name in ("vae", "synchformer", "image_encoder_config"):
        value = getattr(args, name)
        if value is not None and not Path(value).exists():
            raise FileNotFoundError(f"--{name.replace('_', '-')} {value}: no such file or folder")
    check_new_folder(Path(args.target))
    if args.push_to_hub is not None:
        # Only this option needs it, and its import takes long.
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(args.push_to_hub)


def check_export(args: Namespace) -> None:
    """Check the arguments of `audiox export`."""
    target = Path(args.target)
    if target.suffix in (".ckpt", ".safetensors"):
        check_target(target)
        if target.exists():
            raise FileExistsError(f"{target}: exists")
    else:
        check_new_folder(target)
    if args.like is not None and not Path(args.like).exists():
        raise FileNotFoundError(f"--like {args.like}: no such file or folder")
    check_model_name(args.model)
    if args.fuse_lora is not None:
        _check_adapter("--fuse-lora", args.fuse_lora)


def check_new_folder(target: Path) -> None:
    """
    Check that a new folder can be put at `target`, which may be an empty folder.

    Raises:
        OSError: It cannot. The message says why.
    """
    if not target.exists():
        check_target(target)
        return
    if not target.is_dir():
        raise FileExistsError(f"{target}: exists and is not a folder")
    if any(target.iterdir()):
        raise FileExistsError(f"{target}: not an empty folder")
    if os.path.ismount(target) or target.samefile(Path.cwd()):
        what = "a mount point" if os.path.ismount(target) else "the current folder"
        raise FileExistsError(
            f"{target}: {what}, which cannot be replaced. Name a new folder in it: {target / 'audiox'}"
        )
    if not os.access(target.absolute().parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{target.absolute().parent}: folder is not writable")
