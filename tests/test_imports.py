"""The package is imported lazily, and diffusers knows its classes all the same."""

import subprocess
import sys

import pytest

import audiox_diffusers

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
