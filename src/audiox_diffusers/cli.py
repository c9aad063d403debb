"""The `audiox` command. Nothing heavy is imported until a command runs."""

import argparse
import importlib
import sys

from .embedded import EMBEDDED_MODEL

DTYPES = ("float32", "bfloat16", "float16")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `parse_args(...).command` names the module under `commands` that runs it."""
    parser = argparse.ArgumentParser(
        prog="audiox", description="Sound and music from any mix of text, video, image and audio."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_edit(commands)
    _add_features(commands)
    _add_convert(commands)
    _add_demo(commands)
    _add_bench(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="make sounds",
        description="Make sound for any mix of text, video (or image) and audio, or for each line of a file.",
    )
    _add_model(parser)
    parser.add_argument(
        "-o", "--output", required=True, help="sound file, video file (with --video), or folder (with --batch)"
    )

    prompts = parser.add_argument_group("what to hear", "at least one of them; --image and --video exclude each other")
    prompts.add_argument("--prompt", metavar="TEXT", help="description of the sound")
    prompts.add_argument(
        "--video", metavar="FILE", help="video to make sound for, or its features, as `audiox features` writes them"
    )
    prompts.add_argument("--image", metavar="FILE", help="picture to make sound for")
    prompts.add_argument("--audio", metavar="FILE", help="sound to continue or to fill")
    prompts.add_argument(
        "--batch",
        metavar="FILE.jsonl",
        help="instead of these: one JSON object a line, with any of prompt, negative_prompt, video, image, audio,"
        " seed, length, output; files are relative to FILE.jsonl, output to the output folder (default: the line's"
        " number, 00001.wav). Outputs that exist are skipped",
    )
    prompts.add_argument(
        "--batch-size", type=int, metavar="N", help="with --batch: lines of the same length at a time (default: 1)"
    )

    options = parser.add_argument_group("how to make it")
    _add_sampling(options)
    options.add_argument(
        "--length",
        type=float,
        metavar="SECONDS",
        help="of any length; longer than the model's window in windows that overlap (default: 10, or the window; for a"
        " video file, its length if shorter)",
    )
    options.add_argument(
        "--audio-padding",
        choices=("left", "right"),
        default="right",
        help="where silence is added to a short --audio (default: right)",
    )
    _add_placement(options)
    options.add_argument("--normalize", action="store_true", help="scale each sound to a peak of 1.0")


def _add_edit(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "edit",
        help="make parts of a sound anew, let it go on, or vary it",
        description="Edit a sound. What is not made anew stays as it is, sample for sample.",
    )
    _add_model(parser)
    parser.add_argument("--audio", required=True, metavar="FILE", help="sound to edit, or a video with sound")
    parser.add_argument("-o", "--output", required=True, help="sound file, or video file (with --video)")

    edits = parser.add_argument_group("what to do", "one of them; --inpaint and --strength go together")
    edits.add_argument(
        "--inpaint",
        action="append",
        metavar="START-END",
        help="seconds to make anew, such as 2.5-7.5; can be repeated",
    )
    edits.add_argument(
        "--extend", type=float, metavar="SECONDS", help="how long to go on, or with a minus how long to lead in"
    )
    edits.add_argument(
        "--strength", type=float, metavar="S", help="how far to go from the sound, above 0 to 1; alone for a variation"
    )
    edits.add_argument("--crossfade", type=float, metavar="MS", help="milliseconds around what is new (default: 20)")

    prompts = parser.add_argument_group("what to hear", "--image and --video exclude each other")
    prompts.add_argument("--prompt", metavar="TEXT", help="description of the sound")
    prompts.add_argument("--video", metavar="FILE", help="video that the sound goes with")
    prompts.add_argument("--image", metavar="FILE", help="picture that the sound goes with")
    options = parser.add_argument_group("how to make it")
    _add_sampling(options)
    _add_placement(options)
    parser.set_defaults(audio_padding="right", normalize=False)


def _add_sampling(options: argparse._ActionsContainer) -> None:
    options.add_argument("--negative-prompt", metavar="TEXT", help="description of what not to hear")
    options.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the model's own)")
    options.add_argument(
        "--guidance", type=float, metavar="W", help="weight of the prompts, 1 for none (default: the model's own)"
    )
    options.add_argument(
        "--guidance-rescale", type=float, metavar="PHI", help="tames strong guidance, 0 to 1 (default: 0)"
    )
    options.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the first sound; the next ones count up (default: 0)"
    )
    options.add_argument(
        "--num", type=int, metavar="N", help="sounds to make: OUTPUT-1 to OUTPUT-N if more than one (default: 1)"
    )
    options.add_argument(
        "--window-overlap",
        type=float,
        metavar="SECONDS",
        help="how far windows overlap in what is longer than one (default: a quarter of a window)",
    )
    options.add_argument(
        "--window-batch", type=int, default=4, metavar="N", help="windows at a time, which bounds memory (default: 4)"
    )


def _add_features(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "features",
        help="encode videos once, for many sounds",
        description="Write what a model sees in videos to files, which `audiox generate --video` takes in their place.",
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video file")
    _add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE.safetensors|FOLDER",
        help="what to write; in a folder, needed for several videos, a file for each, named after it; those that exist"
        " are skipped",
    )
    _add_placement(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=EMBEDDED_MODEL,
        help="folder that `audiox convert` or training wrote, or a Hub id (default: %(default)s, the small model that"
        " comes with the package)",
    )


def _add_placement(options: argparse._ActionsContainer) -> None:
    options.add_argument(
        "--dtype", choices=DTYPES, help="precision of the networks (default: bfloat16 on cuda, else float32)"
    )
    options.add_argument(
        "--device", help="where to run, such as cuda:1, mps or cpu (default: cuda if there, else cpu)"
    )


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert a released checkpoint",
        description="Write a released AudioX checkpoint as a diffusers folder, with a model card.",
    )
    parser.add_argument("source", help="checkpoint file, folder with model.ckpt and config.json, or Hub id")
    parser.add_argument("target", help="folder to write; it must not exist or be empty")
    parser.add_argument("--config", metavar="FILE", help="the released config.json (default: beside the checkpoint)")
    parser.add_argument("--dtype", choices=DTYPES, help="what to cast the weights to (default: as they are)")
    parser.add_argument("--text-encoder", metavar="DIR_OR_ID", help="T5 (default: google-t5/t5-base)")
    parser.add_argument("--tokenizer", metavar="DIR_OR_ID", help="its tokenizer (default: beside the text encoder)")
    parser.add_argument(
        "--image-encoder-config", metavar="FILE", help="config of CLIP's vision tower (default: that of ViT-B/32)"
    )
    parser.add_argument(
        "--vae",
        metavar="FILE",
        help="VAE of a checkpoint that does not hold it (default: vae.ckpt beside the checkpoint)",
    )
    parser.add_argument(
        "--synchformer",
        metavar="FILE",
        help="Synchformer, for a checkpoint that follows a video's timing (default: synchformer_state_dict.pth beside it)",
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the folder to this Hub repository")


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="make a page of sounds with the small model that comes with the package, offline",
        description="Make sounds of captions, a video, a picture and a sound with the small model that comes with the"
        " package, and a page index.html that plays them.",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write to")


def _add_bench(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure how well a model follows its prompts",
        description="Let a model make sounds for scenes with known answers, and measure how often they are right.",
    )
    _add_model(parser)
    parser.add_argument("--output", metavar="FOLDER", help="where to write bench.json (default: nowhere)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="of text, video, image, audio, silence, missing, vae (default: all; with --sweep: text video)",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="how many (default: 3; with --sweep: 1)")
    parser.add_argument("--count", type=int, metavar="N", help="items of each task (default: 40; with --sweep: 8)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the model's own)")
    parser.add_argument("--guidance", type=float, metavar="W", help="weight of the prompts (default: the model's own)")
    parser.add_argument(
        "--eta", type=float, metavar="E", help="noise added at each step, 0 to 1 (default: the scheduler's own)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="sounds made at a time (default: 16)")
    parser.add_argument(
        "--sounds",
        metavar="FOLDER",
        help="recorded sounds to use instead of synthesised ones, in files or folders named after their class, like bell",
    )
    parser.add_argument("--clips", metavar="FOLDER", help="sounds for the task vae (default: those of the scenes)")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="instead try guidance 1, 3, 7, steps 4, 10, 25, 100 and eta 0, 1: scores against time",
    )
    _add_placement(parser)


def main(argv: list[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv: its arguments, by default those of the process.

    Returns:
        The exit code: 0, 2 if the input was wrong (one line on stderr says how), 130 if interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        return importlib.import_module(f"audiox_diffusers.commands.{args.command}").run(args)
    except (ValueError, OSError) as error:
        print(f"audiox: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("audiox: interrupted", file=sys.stderr)
        return 130


def one_line(error: Exception) -> str:
    """The message of an error without its line breaks, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
