"""
Stop commands with SIGINT and SIGTERM at many moments, and look at what is left.

    python benchmarks/interruptions.py [--moments 30] [--commands generate edit convert batch] [--signals SIGINT SIGTERM]

The moments are spread evenly from the start of the process to its usual end. A run passes if it ends with exit code 130
or 143 (or 0, if the signal came too late to matter), prints no traceback, and leaves nothing but complete outputs.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from common import create_parser

from audiox_diffusers.cli import main as audiox
from audiox_diffusers.embedded import EMBEDDED_FOLDERS
from audiox_diffusers.media import load_audio

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "audiox"
COMMANDS = {
    "generate": "generate --prompt rain --length 12 -o {out}/x.flac",
    "edit": "edit --audio {inputs}/rain.wav --strength 0.5 -o {out}/x.wav",
    "convert": "convert {fixture} {out}/model --text-encoder {fixture}/text_encoder --tokenizer {tiny}/tokenizer"
    " --image-encoder-config {fixture}/image_encoder",
    "batch": "generate --batch {inputs}/lines.jsonl --steps 10 -o {out}/batch",
}


def start(command: str, out: Path, inputs: Path, temporary: Path) -> subprocess.Popen:
    words = command.format(out=out, inputs=inputs, fixture=FIXTURE, tiny=EMBEDDED_FOLDERS["audiox-tiny"]).split()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    start = [str(Path(sys.executable).parent / "audiox"), *words]
    return subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)


def check(out: Path, temporary: Path) -> list[str]:
    """Return what is wrong with the files that are left."""
    wrong = [f"{path.name} left in the temporary folder" for path in temporary.iterdir()]
    for path in out.rglob("*"):
        if path.name.startswith("."):
            wrong.append(f"{path.relative_to(out)} left")
        elif path.suffix in (".wav", ".flac"):
            load_audio(path)
    model = out / "model"
    if model.exists() and not (model / "model_index.json").is_file():
        wrong.append("half a model left")
    return wrong


def run(name: str, number: int, seconds: float, inputs: Path, allowed: float) -> str:
    """Send a signal after so many seconds, and return the outcome."""
    with TemporaryDirectory() as folder:
        out, temporary = Path(folder) / "out", Path(folder) / "tmp"
        out.mkdir()
        temporary.mkdir()
        process = start(COMMANDS[name], out, inputs, temporary)
        time.sleep(seconds)
        late = process.poll() is not None
        process.send_signal(number)
        sent = time.perf_counter()
        _, said = process.communicate(timeout=600)
        waited = time.perf_counter() - sent
        # A process that a signal ended has its negative number; shells add 128 to it.
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        wrong = check(out, temporary)
        if not late and code not in (128 + number, 0):
            wrong.append(f"exit code {code}")
        # Before the package is imported, Python itself reports the interruption.
        if "Traceback" in said and process.returncode >= 0:
            wrong.append("a traceback")
        if waited > allowed:
            wrong.append(f"stopped after {waited:.1f} s")
        if wrong:
            print(f"{name}, {signal.Signals(number).name} after {seconds:.2f} s: {'; '.join(wrong)}\n{said[-500:]}")
            return "wrong"
        return "ended before" if late or code == 0 else f"exit code {code}"


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--signals", nargs="+", default=["SIGINT", "SIGTERM"], help="names of signals")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--allowed", type=float, default=30, help="seconds from the signal to the end of the process")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        inputs = Path(folder)
        audiox(["generate", "--prompt", "rain", "--steps", "5", "-o", str(inputs / "rain.wav")])
        (inputs / "lines.jsonl").write_text('{"prompt": "rain"}\n{"prompt": "a bell strike"}\n{"prompt": "a clap"}\n')
        print("| command | signal | seconds | outcomes |\n|---|---|---|---|")
        for name in args.commands:
            with TemporaryDirectory() as out, TemporaryDirectory() as temporary:
                begin = time.perf_counter()
                assert start(COMMANDS[name], Path(out), inputs, Path(temporary)).wait() == 0
                usual = time.perf_counter() - begin
            for number in map(signal.Signals.__getitem__, args.signals):
                moments = [usual * moment / args.moments for moment in range(args.moments)]
                outcomes = Counter(run(name, number, seconds, inputs, args.allowed) for seconds in moments)
                told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
                print(f"| {name} | {signal.Signals(number).name} | {usual:.1f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
