"""The package is imported lazily, and diffusers knows its classes all the same."""

import ast
import gc
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import resolve_name
from pathlib import Path

import numpy as np
import pytest

import audiox_diffusers
from audiox_diffusers._imports import import_without_gc
from audiox_diffusers.media import save_audio

FOLDER = f"{audiox_diffusers.__path__[0]}/embedded/audiox-tiny"
HEAVY = "[name for name in ('torch', 'numpy', 'av', 'PIL', 'diffusers', 'transformers') if name in sys.modules]"


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "module", ["audiox_diffusers", "audiox_diffusers.cli", "audiox_diffusers.media", "audiox_diffusers.pipelines"]
)
def test_import_loads_nothing_heavy(module):
    assert run(f"import sys, {module}; print({HEAVY})") == "[]"


def test_files_are_read_without_diffusers(tmp_path):
    """Importing it takes longer than `audiox info`."""
    file = tmp_path / "tone.wav"
    save_audio(file, np.zeros((1, 1600)), 16000)
    code = f"import sys; from audiox_diffusers.cli import main; main(['info', {str(file)!r}]); "
    assert run(code + "print('diffusers' in sys.modules)").endswith("False")


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_garbage_collector_pauses_only_for_an_import(tmp_path, monkeypatch, collects, fails):
    (tmp_path / "new.py").write_text(f"import gc; collects = gc.isenabled(); {fails} and 1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            assert not import_without_gc("new").collects
        assert gc.isenabled() == collects
    finally:
        gc.enable()
        sys.modules.pop("new", None)


@pytest.mark.parametrize(
    "imports",
    ["import audiox_diffusers, diffusers", "import diffusers, audiox_diffusers"],
    ids=["before diffusers", "after diffusers"],
)
def test_diffusers_loads_a_pipeline_after_the_import(imports):
    code = f"{imports}; print(type(diffusers.DiffusionPipeline.from_pretrained({FOLDER!r})).__name__)"
    assert run(code) == "AudioXPipeline"


def test_diffusers_keeps_its_own_names():
    code = (
        "import audiox_diffusers, diffusers\n"
        "from diffusers import AudioXPipeline, DDIMScheduler\n"
        "print(AudioXPipeline.__module__, DDIMScheduler.__module__.split('.')[0], hasattr(diffusers, 'Nothing'))"
    )
    assert run(code) == "audiox_diffusers.pipelines.pipeline_audiox diffusers False"


@pytest.mark.parametrize("module", [audiox_diffusers, audiox_diffusers.media, audiox_diffusers.pipelines])
def test_every_exported_name_can_be_imported(module):
    assert set(module.__all__) <= set(dir(module))
    assert all(hasattr(module, name) for name in module.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'audiox_diffusers' has no attribute 'AudioY'"):
        audiox_diffusers.AudioY  # noqa: B018
    with pytest.raises(ImportError):
        from audiox_diffusers import AudioY  # noqa: F401


# Each layer imports from itself and from those after it.
LAYERS = ("commands", "serving", "generation", "pipelines", "loaders", "models")


@pytest.mark.parametrize("layer", LAYERS[1:])
def test_no_layer_imports_from_those_above_it(layer):
    root = Path(audiox_diffusers.__path__[0])
    above = [f"audiox_diffusers.{name}." for name in LAYERS[: LAYERS.index(layer)]]
    files = sorted((root / layer).rglob("*.py"))
    assert files
    for file in files:
        package = ".".join(file.parent.relative_to(root.parent).parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                name = resolve_name("." * node.level + (node.module or ""), package)
                for alias in node.names:
                    assert not f"{name}.{alias.name}.".startswith(tuple(above)), f"{file}: {name}"
