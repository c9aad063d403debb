"""The wheel and the sdist contain the whole package and work without the checkout."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSION_FILE = "src/audiox_diffusers/version.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / ".git").exists(), reason="only a git checkout can tell which files belong to the project"
    ),
]


def project_files():
    """Return the relative paths of all files that git tracks or would track."""
    output = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # Deleted files are still listed until the deletion is committed.
    return sorted(name for name in set(output.split("\0")) if (ROOT / name).is_file())


def run(*command, cwd, **env):
    # Without an index, a build that downloads something fails.
    env = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **env}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the project: setuptools leaves build folders in a tree, and includes what earlier builds left there."""
    tree = tmp_path_factory.mktemp("tree")
    for name in project_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    output = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", output, tree, cwd=output)
    (path,) = output.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def expected_version():
    return re.search(r'__version__ = "(.+)"', (ROOT / VERSION_FILE).read_text(encoding="utf-8")).group(1)


def test_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = {name.removeprefix("src/") for name in project_files() if name.startswith("src/")}
    assert VERSION_FILE.removeprefix("src/") in files & packed
    missing = sorted(files - packed)
    assert not missing, (
        f"not in the wheel: {missing}. A folder with Python files needs an __init__.py, "
        "and other files need package_data in setup.py."
    )


def test_wheel_holds_nothing_else(wheel, expected_version):
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.split("/")[0] for name in archive.namelist()}
        metadata = f"audiox_diffusers-{expected_version}.dist-info"
        assert folders == {"audiox_diffusers", metadata}
        assert "audiox = audiox_diffusers.cli:main" in archive.read(f"{metadata}/entry_points.txt").decode()
        assert f"{metadata}/licenses/LICENSE" in archive.namelist()


def test_wheel_holds_the_embedded_model(wheel):
    folder = "audiox_diffusers/embedded/audiox-tiny"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix(f"{folder}/") for name in archive.namelist() if name.startswith(f"{folder}/")}
        index = json.loads(archive.read(f"{folder}/model_index.json"))
    components = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    assert {name.split("/")[0] for name in packed if "/" in name} == components
    weights = {name.split("/")[0] for name in packed if name.endswith(".safetensors")}
    assert weights == components - {"scheduler", "tokenizer"}
    assert {"README.md", "pipeline.py", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"} <= packed


def test_sdist_holds_what_a_wheel_is_built_from(tree, tmp_path):
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=tree)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    files = {name for name in project_files() if name.startswith("src/")}
    assert not files - packed
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= packed


def test_versions_agree(expected_version):
    assert f"\nversion: {expected_version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the installed wheel, for the path, and an empty one to run in."""
    target, elsewhere = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=elsewhere)
    return target, elsewhere


def test_installed_wheel_imports_from_elsewhere(installed, expected_version):
    target, elsewhere = installed
    code = "import audiox_diffusers as a; print(a.__file__); print(a.__version__)"
    output = run(sys.executable, "-c", code, cwd=elsewhere, PYTHONPATH=str(target))
    file, version = output.splitlines()[-2:]
    # The environment of the tests has an editable install too, which must not be used here.
    assert Path(file).resolve() == (target / "audiox_diffusers" / "__init__.py").resolve()
    assert version == expected_version


def test_installed_wheel_generates_audio_with_the_embedded_model(installed, tmp_path):
    target, elsewhere = installed
    sound = tmp_path / "rain.wav"
    command = ("generate", "--prompt", "rain", "--steps", "2", "--output", sound)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(target)}
    output = run(sys.executable, "-m", "audiox_diffusers.cli", *command, cwd=elsewhere, **offline)
    assert output.startswith(f"wrote {sound}: 4.00 s of mono sound at 16000 Hz")


def test_no_absolute_machine_paths():
    # Split here, so that this file does not match its own pattern.
    folders = "|".join(["work", "root", "home", "opt" + "/wheels"])
    pattern = re.compile(rf"(?<![\w.])/({folders})\b")
    found = []
    for name in project_files():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text file
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, "absolute paths of someone's machine:\n" + "\n".join(found)


def test_import_beside_an_extension_that_cannot_load(tmp_path):
    """As with torchaudio's CUDA wheel beside a CPU build of torch."""
    installed = Path(importlib.util.find_spec("torchaudio").origin).parent
    shutil.copytree(installed, tmp_path / "torchaudio", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "torchaudio" / "lib").mkdir(exist_ok=True)
    (tmp_path / "torchaudio" / "lib" / "_torchaudio.abi3.so").write_bytes(b"not a library")
    code = (
        "import audiox_diffusers, torch, torchaudio\n"
        "from audiox_diffusers.media import resample_audio\n"
        "print(torchaudio.__file__, resample_audio(torch.zeros(1, 80), 8000, 16000).shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout and "[1, 160]" in result.stdout
