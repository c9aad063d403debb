"""Options and help of the `audiox` commands."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ..embedded import EMBEDDED_MODEL
from ..evaluation.metrics import metrics_by_need
from ..loaders.releases import RELEASES, VARIANTS
from ..option_types import MAX_SEED, guidance, guider, interval, real, span, whole
from ..pipelines.requests import MAX_LENGTH
from ..version import __version__
from .checks import (
    check_bench,
    check_convert,
    check_demo,
    check_edit,
    check_evaluate,
    check_export,
    check_features,
    check_generate,
    check_info,
    check_serve,
)

DTYPES = ("float32", "bfloat16", "float16")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    Parse and check the arguments of a command.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments. Defaults to those of the process.

    Returns:
        `argparse.Namespace`: `command` names the module of this package that runs it.

    Raises:
        ValueError, OSError: An argument is wrong. What needs a model or a device is checked later.
    """
    args = build_parser().parse_args(argv)
    args.check(args)
    return args


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="audiox", description="Generate and edit audio from any mix of text, video, images and audio with AudioX."
    )
    parser.add_argument("--version", action="version", version=f"audiox-diffusers {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_generate,
        _add_edit,
        _add_info,
        _add_features,
        _add_convert,
        _add_export,
        _add_demo,
        _add_bench,
        _add_evaluate,
        _add_serve,
    ):
        add(commands)
    _add_training(commands, "train", "train a model on all its tasks")
    _add_training(commands, "train-lora", "train a LoRA adapter")
    _add_training(commands, "distill", "distill a model into one that needs a few steps")
    _add_training(commands, "reconstruct-ema", "average the weights of a training run")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _add(commands: Any, name: str, check: Callable, help: str, description: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=description)
    parser.set_defaults(check=check)
    return parser


def _add_training(commands: Any, name: str, help: str) -> None:
    """Add a command whose options the training code parses, because it is slow to import."""
    # Without a prefix, all options are positional.
    parser = commands.add_parser(name, help=help, add_help=False, prefix_chars="\0")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    parser.set_defaults(check=lambda args: None)


def _add_generate(commands: Any) -> None:
    parser = _add(
        commands,
        "generate",
        check_generate,
        help="generate audio",
        description="Generate audio for a prompt, a video, a picture, a sound, or a mix of them.",
    )
    _add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        help="sound file, video file (with --video), folder (with --batch), or - for WAV on standard output",
    )

    prompts = parser.add_argument_group("prompts", "give at least one; --image and --video exclude each other")
    prompts.add_argument("--prompt", metavar="TEXT", help="description of the sound")
    prompts.add_argument("--video", metavar="FILE", help="video, or its features from `audiox features`")
    prompts.add_argument("--image", metavar="FILE", help="picture")
    prompts.add_argument("--audio", metavar="FILE", help="sound to continue or fill in")
    prompts.add_argument(
        "--batch",
        metavar="FILE.jsonl",
        help="generate one sound per line, instead of the options above: JSON objects with any of prompt,"
        " negative_prompt, video, image, audio, negative_video, negative_audio, seed, length and output. Paths are"
        " relative to FILE.jsonl. output is relative to the output folder and defaults to the line number, such as"
        " 00001.wav. Existing outputs are skipped",
    )
    prompts.add_argument(
        "--batch-size",
        type=whole(1, 1024),
        metavar="N",
        help="with --batch, number of lines of the same length to generate at once (default: 1)",
    )

    options = parser.add_argument_group("generation options")
    _add_sampling(options)
    options.add_argument(
        "--length",
        type=real(0, MAX_LENGTH, above=True),
        metavar="SECONDS",
        help="duration; a sound longer than the model's window is generated in overlapping windows (default: 10 or the"
        " window, whichever is shorter, or the duration of a shorter video)",
    )
    options.add_argument(
        "--audio-padding",
        choices=("left", "right"),
        default="right",
        help="side on which a short --audio is padded with silence (default: right)",
    )
    _add_placement(options)
    _add_compile(options)
    options.add_argument("--normalize", action="store_true", help="scale each sound to a peak of 1.0")


def _add_edit(commands: Any) -> None:
    parser = _add(
        commands,
        "edit",
        check_edit,
        help="inpaint, extend or vary a sound",
        description="Inpaint, extend or vary a sound. Parts that are not regenerated keep every sample.",
    )
    _add_model(parser)
    parser.add_argument("--audio", required=True, metavar="FILE", help="sound to edit, or a video with sound")
    parser.add_argument(
        "-o", "--output", required=True, help="sound file, video file (with --video), or - for WAV on standard output"
    )

    edits = parser.add_argument_group("edits", "give at least one; --extend cannot be combined with the others")
    edits.add_argument(
        "--inpaint",
        type=span,
        action="append",
        metavar="START-END",
        help="seconds to regenerate, such as 2.5-7.5; can be repeated",
    )
    edits.add_argument(
        "--extend",
        type=real(-MAX_LENGTH, MAX_LENGTH, nonzero=True),
        metavar="SECONDS",
        help="seconds to add at the end, or at the start if negative",
    )
    edits.add_argument(
        "--strength",
        type=real(0, 1, above=True),
        metavar="S",
        help="how much to change, above 0 to 1; without --inpaint the whole sound is varied",
    )
    edits.add_argument(
        "--crossfade",
        type=real(0, 60000),
        metavar="MS",
        help="crossfade around regenerated parts in milliseconds (default: 20)",
    )

    prompts = parser.add_argument_group("prompts", "--image and --video exclude each other")
    prompts.add_argument("--prompt", metavar="TEXT", help="description of the sound")
    prompts.add_argument("--video", metavar="FILE", help="video that goes with the sound")
    prompts.add_argument("--image", metavar="FILE", help="picture that goes with the sound")
    options = parser.add_argument_group("generation options")
    _add_sampling(options)
    _add_placement(options)
    _add_compile(options)
    parser.set_defaults(audio_padding="right", normalize=False, length=None)


def _add_sampling(options: Any) -> None:
    options.add_argument("--negative-prompt", metavar="TEXT", help="description of what to avoid")
    options.add_argument("--negative-video", metavar="FILE", help="video that shows what to avoid, or its features")
    options.add_argument("--negative-audio", metavar="FILE", help="sound to avoid")
    options.add_argument(
        "--steps", type=whole(1, 10000), metavar="N", help="number of denoising steps (default: the model's own)"
    )
    _add_guidance(options)
    options.add_argument(
        "--guidance-rescale",
        type=real(0, 1),
        metavar="PHI",
        help="how much to rescale guided predictions, 0 to 1, against distortion by high guidance (default: 0)",
    )
    options.add_argument(
        "--seed",
        type=whole(0, MAX_SEED),
        default=0,
        metavar="S",
        help="seed of the first sound; each further sound adds 1 (default: 0)",
    )
    options.add_argument(
        "--num",
        type=whole(1, 10000),
        metavar="N",
        help="number of sounds, written as OUTPUT-1 to OUTPUT-N (default: 1, written as OUTPUT)",
    )
    options.add_argument(
        "--window-overlap",
        type=real(0, MAX_LENGTH, above=True),
        metavar="SECONDS",
        help="overlap of windows in sounds longer than one (default: a quarter of a window)",
    )
    options.add_argument(
        "--window-batch",
        type=whole(1, 1024),
        default=4,
        metavar="N",
        help="number of windows to denoise at once; fewer take less memory (default: 4)",
    )
    options.add_argument(
        "--no-metadata",
        dest="metadata",
        action="store_false",
        help="do not write prompt, model, seed and settings to the metadata of the file",
    )


def _add_guidance(options: Any) -> None:
    options.add_argument(
        "--guidance",
        type=guidance(-1000, 1000),
        metavar="W",
        help="guidance scale; 1 turns guidance off (default: the model's own). text=3,video=7 weights each kind of"
        " prompt (text, video or image, audio) on its own",
    )
    options.add_argument(
        "--guidance-interval",
        type=interval,
        metavar="LOW-HIGH",
        help="times between which guidance is on, from 0 (clean) to 1 (noise), such as 0.2-0.8 (default: always)",
    )
    options.add_argument(
        "--guider",
        type=guider,
        metavar="NAME[:OPTIONS]",
        help="apg (adaptive projected guidance) or cfg-zero-star (CFG-Zero*) instead of plain guidance, with the scale"
        " of --guidance; options follow as in apg:eta=0.5,momentum=-0.75",
    )


def _add_info(commands: Any) -> None:
    parser = _add(
        commands,
        "info",
        check_info,
        help="print how a file was generated",
        description="Print the prompt, model, seed and settings in the metadata of a file, and the command that"
        " generates it again.",
    )
    parser.add_argument("file", metavar="FILE", help="sound or video file")


def _add_features(commands: Any) -> None:
    parser = _add(
        commands,
        "features",
        check_features,
        help="encode videos once for repeated use",
        description="Encode videos to files that `audiox generate --video` takes instead of the videos.",
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video file")
    _add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE.safetensors|FOLDER",
        help="file to write, or a folder for one file per video, named after the video. Several videos need a folder."
        " Existing files in a folder are skipped",
    )
    _add_placement(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=EMBEDDED_MODEL,
        help=f"folder of a model, released checkpoint, Hub id, or one of {', '.join(RELEASES)}, which are downloaded on"
        " first use (default: %(default)s, a small model that comes with the package; audiox-tiny-turbo needs fewer steps)",
    )


def _add_placement(options: Any, cpu_dtype: str = "mixed on CPUs with AVX512-BF16, ") -> None:
    precision = options.add_mutually_exclusive_group()
    precision.add_argument(
        "--dtype",
        choices=(*DTYPES, "mixed"),
        help="precision of the networks; mixed is bfloat16 for the transformer and float32 for the others (default:"
        f" bfloat16 on cuda, {cpu_dtype}else float32)",
    )
    precision.add_argument(
        "--precise",
        dest="dtype",
        action="store_const",
        const="float32",
        help="same as --dtype float32, the precision of the released weights",
    )
    options.add_argument(
        "--device", help="device such as cuda:1, mps or cpu (default: cuda if available, else mps, else cpu)"
    )


def _add_compile(options: Any) -> None:
    options.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer, with CUDA graphs on cuda; the first sounds take longer, later ones less",
    )


def _add_convert(commands: Any) -> None:
    parser = _add(
        commands,
        "convert",
        check_convert,
        help="convert a released checkpoint",
        description="Convert a released AudioX checkpoint to a diffusers folder with a model card.",
    )
    parser.add_argument("source", help="checkpoint file, folder of a release, name of a release, or Hub id")
    parser.add_argument("target", help="folder to write; it must be empty or not exist")
    parser.add_argument(
        "--config",
        metavar="FILE_OR_NAME",
        help=f"released config.json, or one of {', '.join(RELEASES)} for its published config (default:"
        " config.json beside the checkpoint)",
    )
    parser.add_argument(
        "--variant", choices=VARIANTS, help="which model of AudioX-Turbo to convert (default: the student)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the converted weights (default: unchanged)")
    parser.add_argument("--text-encoder", metavar="DIR_OR_ID", help="T5 encoder (default: google-t5/t5-base)")
    parser.add_argument("--tokenizer", metavar="DIR_OR_ID", help="tokenizer (default: that of the text encoder)")
    parser.add_argument(
        "--image-encoder-config", metavar="FILE", help="config of CLIP's vision tower (default: from the weights)"
    )
    parser.add_argument(
        "--vae",
        metavar="FILE",
        help="VAE, if the checkpoint does not contain it (default: vae.ckpt beside the checkpoint)",
    )
    parser.add_argument(
        "--synchformer",
        metavar="FILE",
        help="Synchformer, for releases that follow the timing of videos (default: synchformer_state_dict.pth beside"
        " the checkpoint)",
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the folder to this Hub repository")


def _add_export(commands: Any) -> None:
    parser = _add(
        commands,
        "export",
        check_export,
        help="write a model as a released checkpoint",
        description="Write a model in the format of the released AudioX checkpoints, which the original code and the"
        " ComfyUI nodes read.",
    )
    parser.add_argument("model", help=f"folder of a model, Hub id, or one of {', '.join(RELEASES)}")
    parser.add_argument(
        "target",
        help="new folder to write in the published layout, or a .ckpt or .safetensors file, with config.json and"
        " Synchformer beside it",
    )
    parser.add_argument(
        "--like",
        metavar="FILE",
        help="released checkpoint to copy dtypes and unused tensors from (default: unused tensors are zeros)",
    )
    parser.add_argument("--fuse-lora", metavar="DIR_OR_ID", help="LoRA adapter to add to the weights")


def _add_demo(commands: Any) -> None:
    parser = _add(
        commands,
        "demo",
        check_demo,
        help="generate a page of samples offline",
        description="Generate audio from captions, a video, a picture and a sound with the small model that comes with"
        " the package, and a page that plays the results, index.html.",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write to")


def _add_bench(commands: Any) -> None:
    parser = _add(
        commands,
        "bench",
        check_bench,
        help="measure how well a model follows its prompts",
        description="Generate audio for scenes with known answers and measure how often the model gets them right.",
    )
    _add_model(parser)
    parser.add_argument("--output", metavar="FOLDER", help="folder for bench.json (default: print the table only)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="some of text, video, image, audio, silence, missing, vae (default: all; with --sweep: text video)",
    )
    parser.add_argument(
        "--seeds", type=whole(1, 1000), metavar="N", help="number of seeds (default: 3; with --sweep: 1)"
    )
    parser.add_argument(
        "--count", type=whole(1, 10000), metavar="N", help="items per task (default: 40; with --sweep: 8)"
    )
    parser.add_argument(
        "--steps", type=whole(1, 10000), metavar="N", help="number of denoising steps (default: the model's own)"
    )
    _add_guidance(parser)
    parser.add_argument(
        "--eta", type=real(0, 1), metavar="E", help="noise added at each step, 0 to 1 (default: the scheduler's own)"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1, 1024),
        default=16,
        metavar="N",
        help="number of sounds to generate at once (default: 16)",
    )
    parser.add_argument(
        "--sounds",
        metavar="FOLDER",
        help="recordings to use instead of synthesised sounds, in files or folders named after their class, like bell",
    )
    parser.add_argument("--clips", metavar="FOLDER", help="sounds for the task vae (default: those of the scenes)")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="instead compare guidance 1, 3, 7, steps 4, 10, 25, 100 and eta 0, 1: scores and time",
    )
    _add_placement(parser, cpu_dtype="")


def _add_evaluate(commands: Any) -> None:
    parser = _add(
        commands,
        "evaluate",
        check_evaluate,
        help="compute the metrics of papers",
        description="Compare generated sounds with references, captions and videos by the metrics that papers report."
        " Files belong together if their names are equal up to the extension.",
    )
    parser.add_argument("generated", metavar="GENERATED", help="folder of generated sounds")
    parser.add_argument(
        "--reference",
        metavar="FOLDER|FILE.npz",
        help="folder of real sounds, or file of statistics from --save-statistics or another tool",
    )
    parser.add_argument("--captions", metavar="FILE", help="CSV or JSON lines with names and captions")
    parser.add_argument("--videos", metavar="FOLDER", help="folder of the videos that the sounds belong to")
    needs = "; ".join(f"{need}: {', '.join(names)}" for need, names in metrics_by_need().items())
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help=f"metrics to compute (default: all that the files allow). Metrics that need {needs}",
    )
    parser.add_argument(
        "--audio-length",
        type=real(0, MAX_LENGTH, above=True),
        metavar="SECONDS",
        help="length that all files are cut to (default: whole files)",
    )
    parser.add_argument("--output", metavar="FILE.json", help="JSON file for the figures and the settings behind them")
    parser.add_argument(
        "--save-statistics",
        metavar="FILE.npz",
        help="file for the mean and covariance of the embeddings of GENERATED, to use as --reference",
    )
    parser.add_argument(
        "--cache", metavar="FOLDER", help="folder for features of files (default: in the Hugging Face cache)"
    )
    parser.add_argument(
        "--weights", metavar="FOLDER", help="folder with the files of the networks (default: download them)"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1, 1024),
        default=16,
        metavar="N",
        help="sounds to generate or measure at once (default: 16)",
    )
    parser.add_argument("--device", help="device such as cuda:1, mps or cpu (default: cuda if available, else cpu)")
    generation = parser.add_argument_group("generate first", "generate the sounds of GENERATED before measuring them")
    generation.add_argument("--set", metavar="FILE.jsonl", help="prompts, as for `audiox generate --batch`")
    generation.add_argument("--model", help="model, as for `audiox generate`")
    generation.add_argument(
        "--seed", type=whole(0, MAX_SEED), metavar="S", help="seed of the first prompt (default: 0)"
    )
    generation.add_argument("--steps", type=whole(1, 10000), metavar="N", help="denoising steps")
    generation.add_argument("--guidance", type=real(-1000, 1000), metavar="W", help="guidance scale")
    parser.set_defaults(dtype="float32")


def _add_serve(commands: Any) -> None:
    parser = _add(
        commands,
        "serve",
        check_serve,
        help="serve models over HTTP",
        description="Serve models over HTTP. The page is at /, the API at /v1 and its documentation at /docs.",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[EMBEDDED_MODEL],
        metavar="MODEL",
        help="models to serve, as for `audiox generate`; requests that name none get the first (default: audiox-tiny)",
    )
    parser.add_argument("--lora", nargs="+", metavar="DIR_OR_ID", help="LoRA adapters that requests can name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=7860, help="port; 0 picks a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--token",
        help="token that clients must send as `Authorization: Bearer TOKEN`; also read from AUDIOX_TOKEN. Required to"
        " listen on other addresses than 127.0.0.1, ::1 and localhost",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-queue",
        type=whole(1, 100_000),
        default=16,
        metavar="N",
        help="number of requests that may wait (default: 16)",
    )
    limits.add_argument(
        "--max-batch",
        type=whole(1, 1024),
        default=8,
        metavar="N",
        help="number of sounds to generate at once (default: 8)",
    )
    limits.add_argument(
        "--max-upload",
        type=real(0, 1e6, above=True),
        default=64.0,
        metavar="MB",
        help="size of a request (default: 64)",
    )
    limits.add_argument(
        "--max-length",
        type=real(0, MAX_LENGTH, above=True),
        default=300.0,
        metavar="SECONDS",
        help="duration of all sounds of a request together (default: 300)",
    )
    limits.add_argument(
        "--max-steps",
        type=whole(1, 10000),
        default=1000,
        metavar="N",
        help="number of denoising steps (default: 1000)",
    )
    limits.add_argument(
        "--max-memory",
        type=real(0, 1e6, above=True),
        metavar="GB",
        help="size of the weights in memory; the least recently used models are unloaded (default: no limit)",
    )
    limits.add_argument(
        "--idle-unload",
        type=real(0, 1e9, above=True),
        metavar="SECONDS",
        help="unload a model after this time without a request (default: never)",
    )
    _add_placement(parser)
    _add_compile(parser)
