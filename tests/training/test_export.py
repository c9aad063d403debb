import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, RepoUrl
from huggingface_hub.utils import filter_repo_objects

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.training import export, parse_args
from audiox_diffusers.training.cards import training_card
from audiox_diffusers.training.export import export_pipeline, push_to_hub

TOKEN = "hf_secret"
COMPONENTS = {"conditioner", "image_encoder", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"}


def arguments(output: Path, *options: object):
    needed = ["--pretrained_model_name_or_path", "someone/audiox", "--dataset", "someone/sounds"]
    needed += ["--output_dir", output, "--max_train_steps", 30]
    return parse_args([str(word) for word in (*needed, *options)])


@pytest.fixture(scope="module")
def pipe(small_model) -> AudioXPipeline:
    return AudioXPipeline.from_pretrained(small_model)


def trained_weights(pipe, *names: str) -> dict[str, torch.Tensor]:
    """Return doubled weights of the components, named as in the training model."""
    return {
        f"{name if name in ('transformer', 'conditioner') else f'encoders.{name}'}.{key}": 2 * value
        for name in names
        for key, value in getattr(pipe, name).state_dict().items()
    }


@pytest.fixture
def exported(pipe, tmp_path):
    """`exported(*options)` exports the model and returns the output folder."""

    def export(*options: object, log: str = '{"step": 1, "loss": 0.5}\n') -> Path:
        folder = tmp_path / "my-audiox"
        folder.mkdir(exist_ok=True)
        (folder / "log.jsonl").write_text(log)
        names = ("transformer", "conditioner")
        weights = trained_weights(pipe, *names)
        export_pipeline(arguments(folder, *options), pipe, names, weights, folder / "log.jsonl")
        return folder

    return export


def test_trained_and_frozen_weights(pipe, exported):
    folder = exported()
    assert {path.name for path in folder.iterdir()} == {
        *COMPONENTS,
        "model_index.json",
        "pipeline.py",
        "README.md",
        "log.jsonl",
    }
    loaded = DiffusionPipeline.from_pretrained(folder)
    assert type(loaded) is AudioXPipeline
    assert dict(loaded.config)["default_num_inference_steps"] == 25 and loaded.config.default_guidance_scale == 1.0
    for name in COMPONENTS - {"scheduler", "tokenizer"}:
        factor = 2 if name in ("transformer", "conditioner") else 1
        expected = getattr(pipe, name).state_dict()
        for key, value in getattr(loaded, name).state_dict().items():
            assert torch.equal(value, factor * expected[key]), (name, key)
    assert loaded.scheduler.config == pipe.scheduler.config
    assert loaded.tokenizer("a bell").input_ids == pipe.tokenizer("a bell").input_ids


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "20KB"])
def test_frozen_components_are_those_of_the_base(pipe, tmp_path, variant, size):
    """A run in bf16 holds frozen components in bf16. Its model has those of the base, bit by bit."""
    base, output = tmp_path / "base", tmp_path / "trained"
    pipe.save_pretrained(base, variant=variant, max_shard_size=size)
    if variant:
        (base / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not this variant")
    rounded = {"text_encoder": torch.bfloat16, "image_encoder": torch.bfloat16, "default": torch.float32}
    loaded = AudioXPipeline.from_pretrained(base, variant=variant, dtype=rounded)
    output.mkdir()
    (output / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    options = [] if variant is None else ["--variant", variant]
    names = ("transformer", "conditioner")
    export_pipeline(arguments(output, *options), loaded, names, trained_weights(pipe, *names), output / "log.jsonl")

    for name in ("text_encoder", "image_encoder", "vae"):
        pattern = f"*.{variant}*.safetensors" if variant else "*.safetensors"
        origin = {path.name.replace(".fp16", ""): path for path in (base / name).glob(pattern)}
        assert origin.keys() == {path.name for path in (output / name).glob("*.safetensors")}
        for file, path in origin.items():
            assert (output / name / file).read_bytes() == path.read_bytes()
    exported = AudioXPipeline.from_pretrained(output)
    for key, value in exported.text_encoder.state_dict().items():
        assert torch.equal(value, pipe.text_encoder.state_dict()[key])
    for config in output.glob("*/config.json"):
        assert "_name_or_path" not in config.read_text()


@pytest.mark.parametrize("name", ["text_encoder", "image_encoder"])
def test_trained_encoders(pipe, tmp_path, name):
    (tmp_path / "log").touch()
    names = ("transformer", "conditioner", name)
    before = {key: value.clone() for key, value in getattr(pipe, name).state_dict().items()}
    export_pipeline(arguments(tmp_path / "out"), pipe, names, trained_weights(pipe, *names), tmp_path / "log")
    loaded = getattr(AudioXPipeline.from_pretrained(tmp_path / "out"), name).state_dict()
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[key], 2 * value) for key, value in before.items())
    assert all(torch.equal(value, before[key]) for key, value in getattr(pipe, name).state_dict().items())


def test_failed_export_keeps_the_old_model(exported, monkeypatch):
    folder = exported()
    (folder / "transformer" / "old.bin").touch()
    (folder / "checkpoint-1").mkdir()
    before = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(export, "training_card", fail)
    with pytest.raises(OSError, match="no space left"):
        exported()
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert (folder / "transformer" / "old.bin").exists() and not list(folder.glob(".*"))
    monkeypatch.undo()
    exported()
    assert not (folder / "transformer" / "old.bin").exists() and (folder / "checkpoint-1").exists()


def test_missing_weights_are_refused(pipe, tmp_path):
    (tmp_path / "log").touch()
    weights = trained_weights(pipe, "transformer", "conditioner")
    weights.pop(next(key for key in weights if key.startswith("conditioner.")))
    with pytest.raises(RuntimeError, match="Missing key"):
        export_pipeline(arguments(tmp_path), pipe, ("transformer", "conditioner"), weights, tmp_path / "log")
    assert not (tmp_path / "transformer").exists()


# The model card


def card(pipe, output: Path, *options: object, losses=((1, 0.5),)) -> ModelCard:
    log = [{"step": step, "loss": loss, "lr": 1.0} for step, loss in losses]
    return ModelCard(training_card(arguments(output, *options), pipe, log))


def losses_of(card: ModelCard) -> list[tuple[int, float]]:
    return [(int(step), float(loss)) for step, loss in re.findall(r"^\| (\d+) \| ([\d.]+) \|$", card.text, re.M)]


def test_card(pipe, tmp_path):
    options = ["--train_batch_size", 3, "--gradient_accumulation_steps", 2, "--lr_scheduler", "cosine", "--seed", 5]
    options += ["--task_weights", "text=2", "image=0", "--drop_text_rate", 0.25, "--use_ema", "--ema_decay", 0.99]
    made = card(pipe, tmp_path / "my-audiox", *options, losses=[(11, 0.5), (12, 0.4)])
    assert made.data.library_name == "diffusers" and made.data.pipeline_tag == "text-to-audio"
    assert "audiox" in made.data.tags
    assert made.data.base_model == "someone/audiox" and made.data.datasets == ["someone/sounds"]
    assert made.text.lstrip().startswith("# my-audiox\n")
    for said in (
        "from `someone/audiox`",
        f"generates up to 2 s of 1-channel audio at {pipe.vae.config.sampling_rate} Hz",
        'from_pretrained("my-audiox")',
        "- data: `someone/sounds` (1)",
        "- steps: 12",
        "- batch size: 3 per device, 2 accumulated",
        "- learning rate: 1e-05, cosine",
        "- averaged weights: decay 0.99",
        "- task weights: text=2, image=0",
        "drop text rate 0.25",
        "- seed: 5",
    ):
        assert said in made.text


def test_card_of_a_model_from_scratch(pipe, tmp_path):
    made = card(pipe, tmp_path, "--from_scratch")
    assert made.data.base_model is None
    assert "from scratch, with the encoders of `someone/audiox`" in made.text


def test_card_holds_no_paths_or_secrets(pipe, small_model, scenes, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.parquet").touch()
    options = ["--pretrained_model_name_or_path", small_model, "--hub_token", TOKEN]
    options += ["--validation_prompts", tmp_path / "private" / "prompts.jsonl", "--dataset_weights", 1, 2, 3, 0.5]
    options += ["--dataset", scenes, tmp_path / "private" / "*.parquet", tmp_path / "private" / "a.parquet"]
    made = card(pipe, tmp_path / "out", *options, "someone/sounds")
    assert "- data: `scenes` (1), `*.parquet` (2), `a.parquet` (3), `someone/sounds` (0.5)" in made.text
    assert "from `audiox-small`" in made.text
    assert made.data.base_model is None and made.data.datasets == ["someone/sounds"]
    for secret in (str(tmp_path), str(small_model.parent), "private", TOKEN):
        assert secret not in made.content


def test_local_files_are_not_linked_to_the_hub(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "sounds").mkdir(parents=True)
    options = ["--pretrained_model_name_or_path", "data/sounds"]
    made = card(pipe, tmp_path, *options, "--dataset", "data/sounds", "data", "data/*.tar", "*.parquet")
    assert made.data.base_model is None and made.data.datasets is None
    assert "`sounds` (1), `data` (1), `*.tar` (1), `*.parquet` (1)" in made.text


def test_losses_in_the_card(pipe, tmp_path):
    assert losses_of(card(pipe, tmp_path, losses=[(1, 0.5), (2, 0.25)])) == [(1, 0.5), (2, 0.25)]
    losses = [(step, step / 100) for step in range(1, 41)]
    rows = losses_of(card(pipe, tmp_path, losses=losses))
    assert rows[0] == (4, 0.025) and rows[-1] == (40, 0.385) and len(rows) == 10
    rows = losses_of(card(pipe, tmp_path, losses=losses[:19]))
    assert rows[0] == (2, 0.015) and rows[-1] == (19, 0.19) and len(rows) == 10
    assert losses_of(card(pipe, tmp_path, losses=[])) == []


def test_code_in_the_card_runs(exported, monkeypatch):
    folder = exported()
    monkeypatch.chdir(folder.parent)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    exec(code, {})
    assert Path("sound.wav").exists()


# The Hub


@pytest.fixture
def hub(monkeypatch):
    """Record the requests to the Hub in `repos` and `uploads`. All repositories belong to "someone"."""
    asked = {"repos": [], "uploads": []}

    def create_repo(repo_id, **options):
        asked["repos"].append({"repo_id": repo_id, **options})
        return RepoUrl(f"https://huggingface.co/{repo_id if '/' in repo_id else f'someone/{repo_id}'}")

    monkeypatch.setattr(export, "create_repo", create_repo)
    monkeypatch.setattr(export, "auth_check", lambda repo_id, **options: None)
    monkeypatch.setattr(export, "upload_folder", lambda **options: asked["uploads"].append(options))
    return asked


def uploaded(upload: dict) -> set[str]:
    """Return the names of the uploaded files."""
    folder = Path(upload["folder_path"])
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    patterns = {name: upload.get(name) for name in ("allow_patterns", "ignore_patterns")}
    return set(filter_repo_objects(files, **patterns))


def test_only_the_model_is_uploaded(exported, hub, small_model):
    folder = exported("--hub_token", TOKEN)
    model = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"log.jsonl"}
    assert "transformer/diffusion_pytorch_model.safetensors" in model and "tokenizer/tokenizer.json" in model
    for name in (
        "checkpoint-5/model.safetensors",
        "checkpoint-5/optimizer.safetensors",
        "checkpoint-5/transformer/model.safetensors",
        ".checkpoint-6/model.safetensors",
        ".model/transformer/model.safetensors",
        ".env",
        "token",
        "skipped.jsonl",
        "logs/audiox/events.out.tfevents.1",
        "tensorboard/audiox/hparams.yml",
        "wandb/run-1/files/config.yaml",
        "validation/step-5/001.wav",
        "cache/source-000/shard-00000-row-000000000.parquet",
        "transformer-old/model.safetensors",
        "transformer_notes.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    address = push_to_hub(arguments(folder, "--hub_token", TOKEN))
    ((upload,), (repo,)) = hub["uploads"], hub["repos"]
    assert uploaded(upload) == model
    assert repo == {"repo_id": "my-audiox", "token": TOKEN, "exist_ok": True}
    assert (upload["repo_id"], upload["token"]) == ("someone/my-audiox", TOKEN)
    assert str(address) == "https://huggingface.co/someone/my-audiox"
    for name in uploaded(upload):
        for secret in (TOKEN, str(folder.parent), str(small_model)):
            assert secret.encode() not in (folder / name).read_bytes(), name


def test_uploaded_card_has_the_full_repository_name(exported, hub):
    folder = exported()
    push_to_hub(arguments(folder))
    assert 'from_pretrained("someone/my-audiox")' in (folder / "README.md").read_text()

    named = ["--hub_model_id", "a-lab/audiox-bells"]
    exported(*named)
    assert 'from_pretrained("a-lab/audiox-bells")' in (folder / "README.md").read_text()
    push_to_hub(arguments(folder, *named))
    assert 'from_pretrained("a-lab/audiox-bells")' in (folder / "README.md").read_text()
    assert hub["uploads"][1]["repo_id"] == "a-lab/audiox-bells"


def test_run_with_push_to_hub(train, tmp_path, hub):
    train("out", 1, "--push_to_hub", "--hub_token", TOKEN)
    (upload,) = hub["uploads"]
    names = uploaded(upload)
    assert {name.split("/")[0] for name in names} == {*COMPONENTS, "model_index.json", "pipeline.py", "README.md"}
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["transformer"][0] == "diffusers"
    for name in (tmp_path / "out").rglob("*"):
        assert name.is_dir() or TOKEN.encode() not in name.read_bytes(), name


def test_run_without_push_to_hub(train, hub):
    train("out", 1)
    assert hub == {"repos": [], "uploads": []}
