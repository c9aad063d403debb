"""`accelerate launch --dynamo_backend`: a compiled model trains, validates, resumes and exports."""

import pytest
from helpers import assert_equal
from safetensors.torch import load_file

from audiox_diffusers import AudioXPipeline


@pytest.fixture(params=["whole", "regional"])
def compiled(request, monkeypatch):
    """
    Set what `accelerate launch --dynamo_backend aot_eager` sets, also with `--dynamo_use_regional_compilation`. That backend
    needs no C++ compiler.
    """
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", str(request.param == "regional"))


def files(folder):
    """Read all exported weights that are trained."""
    found = [*folder.glob("transformer/*.safetensors"), *folder.glob("*.safetensors")]
    return {path.name: load_file(path) for path in found}


def assert_plain_names(folder, step: int) -> None:
    for file in (load_file(folder / f"checkpoint-{step}" / "model.safetensors"), *files(folder).values()):
        assert file and not [name for name in file if "_orig_mod" in name]


@pytest.mark.slow
def test_full_training(train, compiled, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "rain"}\n')
    options = ["--validation_prompts", tmp_path / "prompts.jsonl", "--validation_inference_steps", 1, "--use_ema"]
    unbroken = train("out", 3, *options, "--checkpointing_steps", 2)
    exported = files(tmp_path / "out")
    assert_plain_names(tmp_path / "out", 2)
    assert list((tmp_path / "out" / "validation" / "step-3").glob("*.wav"))
    assert train("out", 3, *options, "--resume_from_checkpoint", "checkpoint-2") == unbroken
    assert_equal(files(tmp_path / "out"), exported)
    pipe = AudioXPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(prompt="rain", num_inference_steps=1).audios) == 1


@pytest.mark.slow
def test_adapter(train_lora, compiled, small_model, tmp_path):
    train_lora("out", 1, "--held_out", train_lora.scenes)
    assert_plain_names(tmp_path / "out", 1)
    AudioXPipeline.from_pretrained(small_model).load_lora_weights(tmp_path / "out")


@pytest.mark.slow
def test_student(train_student, compiled, tmp_path):
    train_student("out", 1, "--teacher_guidance_scale", 2, "--fake_updates", 1)
    assert_plain_names(tmp_path / "out", 1)
    AudioXPipeline.from_pretrained(tmp_path / "out")
