"""
The code blocks of README.md and docs run, their commands parse, and their links lead to files.

Each ```bash and ```python block runs in its own process. The blocks of a document run in order, in one folder. A block that
cannot run offline has a marker with the reason on the line before it:

    <!-- not run: needs the released weights -->

Such a block is only compiled, or its `audiox` commands are parsed.
"""

import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_server import live_server
from loopback_hub import loopback_hub
from small_releases import write_repositories
from warm_processes import warm_programs

from audiox_diffusers.loaders import RELEASES
from audiox_diffusers.testing import create_random_pipeline

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
RUN_TIMEOUT = 300  # seconds for one block
SERVER = "127.0.0.1:7860"

DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
LINKING_DOCUMENTS = [*DOCUMENTS, "CONTRIBUTING.md"]

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})\s*(?P<language>[^\s`]*)[^`]*$")
MARKER = re.compile(r"^\s*<!--\s*not run:(?P<reason>.*)-->\s*$", re.IGNORECASE)
# Wider than MARKER, so that misspelled markers are reported.
MARKER_LIKE = re.compile(r"<!--[\s-]*(not|don'?t|never|skip)[\s-]*run", re.IGNORECASE)


# Reading the documents


@dataclass
class Block:
    document: str
    line: int  # of the opening fence, counted from 1
    language: str
    source: str
    not_run: str | None  # the marker's reason; None without a marker

    @property
    def place(self):
        return f"{self.document}:{self.line}"


def read(document):
    """Return the blocks of a document, the (number, line) pairs outside of them, and the problems found."""
    blocks, prose, problems = [], [], []
    fence = block = reason = None
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        place = f"{document}:{number}"
        if fence:
            if re.fullmatch(rf" *{re.escape(fence['fence'])}{re.escape(fence['fence'][0])}*\s*", line):
                fence = None
            else:
                # A block inside a list is indented as a whole.
                indent = len(fence["indent"])
                block.source += (line[indent:] if not line[:indent].strip() else line) + "\n"
        elif fence := FENCE.match(line):
            block = Block(document, number, fence["language"].lower(), "", reason)
            blocks.append(block)
            reason = None
        elif marker := MARKER.match(line):
            reason = marker["reason"].strip()
            if not reason:
                problems.append(f"{place}: the marker gives no reason")
        else:
            if MARKER_LIKE.search(line):
                problems.append(f"{place}: not in the form <!-- not run: the reason -->")
            if reason is not None and line.strip():
                problems.append(f"{place}: a 'not run' marker must stand right before a block")
                reason = None
            prose.append((number, line))
    if fence:
        problems.append(f"{block.place}: the block is not closed")
    if reason is not None:
        problems.append(f"{document}: a 'not run' marker at the end, with no block after it")
    return blocks, prose, problems


def blocks_of(document, *languages):
    return [block for block in read(document)[0] if block.language in languages]


def logical_lines(source):
    """Yield the lines of a shell script with continuations and quotes joined, without here-documents."""
    pending = ""
    lines = iter(source.splitlines())
    for line in lines:
        pending += line
        if re.search(r"(?<!\\)(\\\\)*\\$", pending):
            pending = pending[:-1]
            continue
        try:
            shlex.split(pending, comments=True)
        except ValueError:  # a quote is still open
            pending += "\n"
            continue
        yield pending
        if here := re.search(r"(?<!<)<<-?\s*[\"']?(\w+)", pending):
            for body in lines:
                if body.strip() == here[1]:
                    break
        pending = ""
    if pending:
        yield pending


def commands(source):
    """Yield the simple commands of a shell script as lists of words, without variable settings."""
    for line in logical_lines(source):
        line = re.sub(r"(?<=\s)\d(?=[<>])", "", line)  # 2>&1: the 2 is not an argument
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words, redirected = [], False
        for token in [*lexer, ";"]:
            if token and set(token) <= set(";&|()"):
                while words and re.fullmatch(r"\w+=.*|do|then|else|if|while|time|!", words[0], re.DOTALL):
                    words.pop(0)
                if words:
                    yield words
                words = []
            elif token and set(token) <= set("<>&"):
                redirected = True
            elif redirected:
                redirected = False
            else:
                words.append(token)


# Running the blocks


def make_media(folder):
    """Write the video, picture and sound that the examples use, each half a second long."""
    import av
    import numpy as np
    from PIL import Image

    height, width, rate, sample_rate = 64, 96, 8, 16000
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    frame = np.stack([np.tile(ramp, (height, 1)), np.full((height, width), 128), np.tile(ramp[::-1], (height, 1))], -1)
    frame = frame.astype(np.uint8)
    Image.fromarray(frame).save(folder / "picture.jpg")

    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for shift in range(rate // 2):
            picture = np.ascontiguousarray(np.roll(frame, 12 * shift, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))

    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(sample_rate // 2) / sample_rate)
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((tone * 32767).astype("<i2").tobytes())


@pytest.fixture
def working_folder(tmp_path_factory):
    """The folder in which a document's blocks run, with the files that the examples use."""
    folder = tmp_path_factory.mktemp("document")
    make_media(folder)
    create_random_pipeline().save_pretrained(folder / "audiox")
    # For examples with .venv/bin/audiox.
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    (folder / "training").symlink_to(ROOT / "training", target_is_directory=True)
    return folder


@contextlib.contextmanager
def hub_of_releases(document, folder, tokenizer):
    """Serve small weights of the released models for the page about them, and put their files into its folder."""
    if document != "docs/releases.md":
        yield {}
        return
    shutil.rmtree(folder / "audiox")  # a folder would come before the release of that name
    repositories = write_repositories(folder / "hub", tokenizer)
    turbo = repositories["HKUSTAudio/AudioX-Turbo"]
    shutil.copytree(turbo, folder / "checkpoints")
    shutil.copy(turbo / "audiox_turbo" / "audiox_turbo.ckpt", folder / "student.ckpt")
    shutil.copytree(repositories["HKUSTAudio/AudioX-MAF"], folder / "models" / "audiox")
    (folder / "files").mkdir()
    with loopback_hub(repositories) as hub:
        yield hub.environment


@contextlib.contextmanager
def address_of_server(document, folder):
    """Run a server for the page about it, and yield its address."""
    if document != "docs/serving.md":
        yield SERVER
        return
    (folder / "jobs").mkdir()
    with live_server(folder / "jobs") as server:
        yield server.url.removeprefix("http://")


def environment_of_blocks(cache, more):
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "HF_HUB_OFFLINE": "1",
        # An empty cache, so that earlier downloads do not make a block pass.
        "HF_HOME": str(cache),
        "MPLBACKEND": "Agg",
        "PYTHONIOENCODING": "utf-8",
        **more,
    }


@contextlib.contextmanager
def programs(document, folder, environment):
    """
    Yield the folder of `python` and `audiox`, which comes first in the PATH.

    In documents with many commands, they are forks of a process that has imported the libraries. The others show
    that new processes do the same.
    """
    count = sum(
        1 if block.language == "python" else sum(words[0] in ("python", "audiox") for words in commands(block.source))
        for block in blocks_of(document, "bash", "python")
        if block.not_run is None
    )
    if document == "README.md" or count <= 5:
        yield BIN
        return
    warm = folder / "programs"
    environment["PATH"] = f"{warm}{os.pathsep}{environment['PATH']}"
    with warm_programs(warm, environment):
        yield warm


def run(command, folder, place, environment):
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        # Its own process group, so that a block that hangs is ended with its child processes.
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=RUN_TIMEOUT)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        pytest.fail(f"{place}: still running after {RUN_TIMEOUT} s\n{output}", pytrace=False)
    if process.returncode != 0:
        pytest.fail(f"{place}: exit status {process.returncode}\n{output}", pytrace=False)


def make_targets():
    return set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def check_make(block):
    """Check the targets of `make` commands, which are not run: `make test` would run this test again."""
    for words in commands(block.source):
        if words[0] == "make":
            targets = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
            unknown = sorted(set(targets) - make_targets())
            assert not unknown, f"{block.place}: the Makefile has no target {', '.join(unknown)}"


NO_MAKE = "make() { :; }; export -f make; "

# With the document's path and line numbers, tracebacks show lines of the document.
RUN_PYTHON = "import sys; path, source = sys.argv[1:]; sys.argv[1:] = []; exec(compile(source, path, 'exec'))"


def as_in_document(block):
    return "\n" * block.line + block.source


def replace_address(block, address):
    """Let a block use another address than the one that the documents show, which may be in use."""
    return dataclasses.replace(block, source=block.source.replace(SERVER, address))


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_run(document, working_folder, tmp_path, tokenizer):
    with (
        hub_of_releases(document, working_folder, tokenizer) as of_hub,
        address_of_server(document, working_folder) as address,
    ):
        environment = environment_of_blocks(tmp_path / "cache", of_hub)
        with programs(document, tmp_path, environment) as folder:
            for block in blocks_of(document, "bash", "python"):
                block = replace_address(block, address)
                if block.not_run is not None:
                    continue
                if block.language == "python":
                    command = [folder / "python", "-c", RUN_PYTHON, str(ROOT / document), as_in_document(block)]
                else:
                    check_make(block)
                    command = ["bash", "-e", "-c", NO_MAKE + block.source]
                run(command, working_folder, block.place, environment)


WAYS_TO_END = """
import sys
print(sys.argv, sys.path[0], sys.stdin.read(), __name__, open(sys.argv[2]).read())
sys.exit(sys.argv[1] if sys.argv[1].isalpha() else int(sys.argv[1]))
"""
COMMANDS = """
(python -c "$SOURCE" 3 <(echo one) <<< two) || echo "code $?"
(echo two | python -c "$SOURCE" words <(echo one) 2>&1) || echo "code $?"
python way.py 0 way.py < /dev/null
python -m way 0 way.py < /dev/null
NEW=1 python -c 'import os; print(os.environ["NEW"])'
python -B -c 'print(1)'
(python -c 'import os; os.kill(os.getpid(), 9)' || test $? -gt 128) && echo killed
(audiox generate --steps x 2>&1) || echo "code $?"
python -c 'import audiox_diffusers, sys; print("torch" in sys.modules, file=sys.stderr)'
"""


def test_warm_programs_do_what_new_processes_do(tmp_path):
    (tmp_path / "way.py").write_text(WAYS_TO_END)
    warm = tmp_path / "programs"
    environment = {**os.environ, "SOURCE": WAYS_TO_END, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def outcome(environment):
        result = subprocess.run(
            ["bash", "-c", COMMANDS], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        return result.stdout, result.stderr, result.returncode

    output, _, code = outcome(environment)
    environment["PATH"] = f"{warm}{os.pathsep}{environment['PATH']}"
    with warm_programs(warm, environment):
        assert outcome(environment) == (output, "True\n", code)


@pytest.mark.parametrize("document", ["README.md", "docs/releases.md"])
def test_table_of_releases(document):
    """Each line names a release that loads by its name, and its Hub repository."""
    rows = re.findall(r"^\| `(audiox[\w-]*)` \|(.*)$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(RELEASES)
    for name, row in rows:
        assert RELEASES[name].repo_id in row or "AudioX-Turbo" in row


# Checking the blocks that are not run


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_not_run_compile(document):
    for block in blocks_of(document, "python"):
        if block.not_run is not None:
            try:
                compile(as_in_document(block), document, "exec")
            except SyntaxError as error:
                pytest.fail(f"{document}:{error.lineno}: {error.msg}", pytrace=False)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_not_run_parse(document):
    for block in blocks_of(document, "bash"):
        if block.not_run is None:
            continue
        check_make(block)
        for words in commands(block.source):
            if Path(words[0]).name != "audiox":
                continue
            from audiox_diffusers.commands.parser import build_parser

            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    build_parser().parse_args(words[1:])
            except SystemExit:
                pass  # --help
            except ValueError as error:
                pytest.fail(f"{block.place}: {shlex.join(words)}\n{error}", pytrace=False)


# Checking the documents themselves


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_are_well_formed(document):
    blocks, _, problems = read(document)
    for block in blocks:
        # Blocks without a label, or with another one, would silently not run.
        if not block.language:
            problems.append(f"{block.place}: name the block's language; use text for none")
        if block.language in ("sh", "shell", "console", "zsh", "shell-session"):
            problems.append(f"{block.place}: write bash instead of {block.language}")
        if block.language in ("py", "py3", "python3", "pycon"):
            problems.append(f"{block.place}: write python instead of {block.language}")
    assert not problems, "\n".join(problems)


LINKS = (
    re.compile(r"\]\(\s*<?(?P<target>[^)\s>]+)"),  # [text](target), also of images
    re.compile(r"^\s*\[[^\]]+\]:\s*<?(?P<target>[^\s>]+)"),  # [name]: target
    re.compile(r"\b(?:src|href)=[\"'](?P<target>[^\"']+)"),  # in HTML
)


@pytest.mark.parametrize("document", LINKING_DOCUMENTS)
def test_relative_links_lead_to_files(document):
    broken = []
    for number, line in read(document)[1]:
        line = re.sub(r"(`+).+?\1", "", line)  # code is not a link
        for target in (match["target"] for pattern in LINKS for match in pattern.finditer(line)):
            path = target.split("#")[0].split("?")[0]
            if not path or re.match(r"[a-z][a-z+.-]*:|//", target, re.IGNORECASE):
                continue  # a heading, or a web page
            if not ((ROOT / document).parent / path).exists():
                broken.append(f"{document}:{number}: {target}")
    assert not broken, "links to files that do not exist:\n" + "\n".join(broken)
