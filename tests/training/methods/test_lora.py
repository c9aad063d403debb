"""Training of adapters."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import assert_equal
from huggingface_hub import ModelCard, RepoUrl
from safetensors.torch import load_file

from audiox_diffusers import AudioXMMTransformer2DModel, AudioXPipeline
from audiox_diffusers.media import load_audio
from audiox_diffusers.training import LoraTraining, Trainer, export, main, parse_args
from audiox_diffusers.training.arguments import TrainingArguments, build_parser
from audiox_diffusers.training.cards import lora_card
from audiox_diffusers.training.methods import lora, quantization
from audiox_diffusers.training.methods.early_stopping import HELD_OUT_LOSS, EarlyStopping
from audiox_diffusers.training.methods.lora_arguments import LoraArguments

FILE = "pytorch_lora_weights.safetensors"
NEEDED = ["--pretrained_model_name_or_path", "someone/audiox", "--dataset", "someone/sounds"]
NEEDED += ["--output_dir", "out", "--max_train_steps", "10"]


def parse(*options: object):
    return parse_args([*NEEDED, *map(str, options)], LoraTraining)


def generate(pipe: AudioXPipeline, prompt: str = "a bell", **options) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, num_inference_steps=3, output_type="latent", **options).audios


def config_of(folder: Path) -> dict:
    _, metadata = AudioXPipeline.lora_state_dict(str(folder), return_lora_metadata=True)
    return metadata


@pytest.fixture
def pipe(small_model) -> AudioXPipeline:
    return AudioXPipeline.from_pretrained(small_model)


@pytest.fixture
def mm_model(pipe, tmp_path) -> Path:
    """The small model with an MMDiT."""
    pipe.register_modules(
        transformer=AudioXMMTransformer2DModel(
            sample_size=125,
            in_channels=128,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_input_dim=64,
            num_context_tokens=16 + 128 + 125,
            time_proj_dim=16,
            ff_inner_dim=40,
        )
    )
    pipe.save_pretrained(tmp_path / "mm")
    return tmp_path / "mm"


@pytest.fixture
def trainers(monkeypatch):
    """Record the trainers of a test."""
    made, train = [], Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda trainer: (made.append(trainer), train(trainer)))
    return made


# A run


def test_only_the_adapter_is_trained(train_lora, trainers, small_model, pipe, tmp_path):
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    plain = generate(pipe)
    options = ["--rank", 4, "--lora_alpha", 6, "--target_modules", "to_q", "ff.net.2", "--learning_rate", 0.01]
    losses = train_lora("out", 2, *options)
    assert list(losses) == [1, 2]
    (trainer,) = trainers
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 3 * 2 and all("lora_" in name for name in trained)
    for key, value in trainer.pipe.transformer.state_dict().items():
        if "lora_" not in key:
            assert torch.equal(value, before[key.replace(".base_layer", "")]), key

    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        FILE,
        "cache",
        "checkpoint-2",
        "log.jsonl",
        "run.yaml",
        "samples",
    }
    metadata = config_of(folder)
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (4, 6)
    assert set(metadata["transformer.target_modules"]) == {"to_q", "ff.net.2"}
    assert metadata["base_model.name"] == "audiox-small"
    assert metadata["base_model.transformer"]["num_layers"] == 2

    pipe.load_lora_weights(folder)
    changed = generate(pipe)
    assert not torch.allclose(changed, plain, rtol=1e-3)
    # It is what the run heard when it was over.
    trainer.pipe.to("cpu")
    torch.testing.assert_close(generate(trainer.pipe), changed)
    pipe.unload_lora_weights()
    assert_equal(pipe.transformer.state_dict(), before)
    assert torch.equal(generate(pipe), plain)


def test_checkpoint_holds_only_the_adapter(train_lora, tmp_path):
    train_lora("out", 1, "--train_conditioner")
    kept = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")
    assert {key.split(".")[0] for key in kept} == {"transformer", "conditioner"}
    assert all("lora_" in key for key in kept)


@pytest.mark.parametrize(
    "options",
    [
        ["--train_conditioner", "--use_ema", "--lora_dropout", 0.5],
        ["--init_lora_weights", "pissa_niter_2", "--gradient_accumulation_steps", 2],
    ],
    ids=["conditioner", "pissa"],
)
def test_resume_is_exact(train_lora, tmp_path, options):
    options = [*options, "--checkpointing_steps", 1, "--lr_scheduler", "cosine"]
    unbroken = train_lora("out", 4, *options)
    expected = load_file(tmp_path / "out" / FILE)
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{step}")
    assert train_lora("out", 4, *options, "--resume_from_checkpoint", "latest") == unbroken
    assert_equal(load_file(tmp_path / "out" / FILE), expected)


def test_resume_with_another_rank(train_lora):
    train_lora("out", 1)
    with pytest.raises(ValueError, match="--rank was 16 and is 8"):
        train_lora("out", 2, "--rank", 8, "--resume_from_checkpoint", "latest")


def test_adapter_of_the_conditioner(train_lora, pipe, tmp_path):
    before = {key: value.clone() for key, value in pipe.conditioner.state_dict().items()}
    plain = generate(pipe)
    train_lora("out", 2, "--train_conditioner", "--learning_rate", 0.01)
    pipe.load_lora_weights(tmp_path / "out", adapter_name="bells")
    assert pipe.get_list_adapters() == {"transformer": ["bells"], "conditioner": ["bells"]}
    layers = {name: layer for name, layer in pipe.conditioner.named_modules() if hasattr(layer, "lora_B")}
    assert list(layers) == ["video_proj.proj", "audio_proj.proj"]
    assert all(layer.lora_B["bells"].weight.any() for layer in layers.values())
    pipe.unload_lora_weights()
    assert_equal(pipe.conditioner.state_dict(), before)
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "olora", "pissa"])
@pytest.mark.parametrize("kind", [[], ["--use_rslora"]], ids=["lora", "rslora"])
def test_initializations_do_not_change_the_model(train_lora, trainers, pipe, tmp_path, init, kind):
    """An adapter trained with a tiny learning rate changes nothing."""
    plain = generate(pipe)
    options = ["--init_lora_weights", init, *kind, "--rank", 4, "--lora_alpha", 3, "--learning_rate", 1e-12]
    first = train_lora("out", 1, *options)
    assert first[1] == pytest.approx(train_lora("plain", 1, *options[2:])[1], rel=1e-4)
    pipe.load_lora_weights(tmp_path / "out")
    torch.testing.assert_close(generate(pipe), plain, rtol=1e-3, atol=1e-3)
    metadata = config_of(tmp_path / "out")
    assert metadata["transformer.r"] == (8 if init in ("olora", "pissa") else 4)
    if init == "pissa":
        # The layers themselves are far from nothing.
        layers = load_file(tmp_path / "out" / FILE)
        assert min(tensor.abs().max() for tensor in layers.values()) > 1e-2


@pytest.mark.parametrize("options", [["pissa"], ["olora"], ["pissa", "--use_rslora"]], ids=" ".join)
def test_export_of_initializations_that_change_the_base(train_lora, trainers, pipe, tmp_path, options):
    options = ["--init_lora_weights", *options, "--rank", 3, "--lora_alpha", 5, "--learning_rate", 0.01]
    train_lora("out", 3, *options)
    plain = generate(pipe)
    pipe.load_lora_weights(tmp_path / "out")
    expected = generate(trainers[0].pipe.to("cpu"))
    torch.testing.assert_close(generate(pipe), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, expected, rtol=1e-2)


@pytest.mark.parametrize("kind", ["use_dora", "use_rslora"])
def test_dora_and_rslora(train_lora, tmp_path, kind):
    plain = train_lora("plain", 3, "--lora_alpha", 2, "--learning_rate", 0.01)
    losses = train_lora("out", 3, "--lora_alpha", 2, "--learning_rate", 0.01, f"--{kind}")
    assert losses[1] == pytest.approx(plain[1], rel=1e-4) and losses[3] != plain[3]
    assert config_of(tmp_path / "out")[f"transformer.{kind}"] is True


def test_mmdit(train_lora, mm_model, small_model, tmp_path):
    train_lora("out", 1, "--pretrained_model_name_or_path", mm_model, "--use_dora")
    assert set(config_of(tmp_path / "out")["transformer.target_modules"]) == {"to_q", "to_k", "to_v", "to_out"}
    AudioXPipeline.from_pretrained(mm_model).load_lora_weights(tmp_path / "out")
    with pytest.raises(ValueError, match="transformer._class_name was 'AudioXMMTransformer2DModel'"):
        AudioXPipeline.from_pretrained(small_model).load_lora_weights(tmp_path / "out")


def test_base_is_frozen_in_half_precision(train_lora, trainers):
    losses = train_lora("half", 2, "--mixed_precision", "bf16", "--gradient_checkpointing")
    (trainer,) = trainers
    dtypes = {
        name: parameter.dtype
        for name, parameter in trainer.pipe.transformer.named_parameters()
        if "time_proj" not in name
    }
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}
    assert trainer.pipe.transformer.time_proj.weight.dtype == torch.float32
    assert losses == pytest.approx(train_lora("whole", 2), rel=0.02)


def test_data_is_cached_by_default(train_lora, tmp_path):
    cached = train_lora("cached", 2)
    assert (tmp_path / "cached" / "cache" / "cache.json").exists()
    assert train_lora("plain", 2, "--no_cache_latents") == pytest.approx(cached, rel=1e-5)
    assert not (tmp_path / "plain" / "cache").exists()


# Prior preservation


def test_prior_preservation(train_lora, trainers, tmp_path):
    options = ["--with_prior_preservation", "--class_prompt", "rain", "a siren", "--num_class_sounds", 3]
    options += ["--validation_inference_steps", 2, "--shuffle_buffer_size", 1]
    train_lora("out", 2, *options, "--prior_loss_weight", 0.5)
    rows = [json.loads(line) for line in (tmp_path / "out" / "class" / "metadata.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["rain", "a siren", "rain"]
    sounds = [load_audio(tmp_path / "out" / "class" / row["file_name"])[0] for row in rows]
    assert not torch.equal(sounds[0], sounds[2]) and sounds[0].shape == (1, 16000)
    (trainer,) = trainers
    assert trainer.records.weights == [1.0, 1.0]

    # Its samples count half as much; those of the data count whole.
    strategy, model = trainer.strategy, trainer.model.eval()
    reader = iter(trainer.records)
    batches = [trainer.maker.make(next(reader).records) for _ in range(4)]
    sources = {sample.key.source for batch in batches for sample in batch.samples}
    assert sources == {0, 1}
    with torch.no_grad():
        for batch in batches:
            weighed = strategy.loss(model, batch, 0)
            whole = super(type(strategy), strategy).loss(model, batch, 0)
            factor = torch.tensor([0.5 if sample.key.source == 1 else 1.0 for sample in batch.samples])
            assert torch.equal(weighed, factor * whole)


def test_existing_prior_data_is_reused(train_lora, tmp_path):
    options = ["--with_prior_preservation", "--class_data_dir", tmp_path / "class", "--validation_inference_steps", 2]
    train_lora("one", 1, *options, "--class_prompt", "rain", "--num_class_sounds", 1)
    first = (tmp_path / "class" / "00000.wav").read_bytes()
    with pytest.raises(ValueError, match="has 1 of --num_class_sounds 2 files; give captions for the others with"):
        train_lora("two", 1, *options, "--num_class_sounds", 2)
    train_lora("two", 1, *options, "--class_prompt", "rain", "--num_class_sounds", 2)
    assert (tmp_path / "class" / "00000.wav").read_bytes() == first and (tmp_path / "class" / "00001.wav").exists()


@pytest.mark.parametrize(
    "options",
    [["--caption_column", "json.caption"], ["--video_column", "film"], ["--dataset_split", "other"]],
    ids=lambda options: options[0],
)
def test_prior_data_with_other_dataset_options(train_lora, trainers, scenes, tmp_path, options):
    rows = [json.loads(line) for line in (scenes / "metadata.jsonl").read_text().splitlines()]
    clips = [(str(scenes / row["file_name"]), row["caption"]) for row in rows]
    rows = [{"audio": clip, "film": clip, "json": {"caption": caption}} for clip, caption in clips]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prior = ["--with_prior_preservation", "--class_prompt", "rain", "--num_class_sounds", 2]
    prior += ["--validation_inference_steps", 1, "--task_weights", "video=0", "--no_cache_latents"]
    train_lora("out", 1, "--dataset", tmp_path / "data.jsonl", *prior, *options)
    reader = iter(trainers[0].records)
    records = [record for _ in range(6) for record in next(reader).records]
    assert {("caption" in record.choice.available) for record in records if record.key.source == 1} == {True}
    assert {record.key.source for record in records} == {0, 1}


def test_resume_after_moving_the_output_folder(train_lora, tmp_path):
    options = ["--with_prior_preservation", "--class_prompt", "rain", "--num_class_sounds", 1]
    options += ["--validation_inference_steps", 1]
    train_lora("out", 1, *options)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert len(train_lora("moved", 2, *options, "--resume_from_checkpoint", "latest")) == 2
    with pytest.raises(ValueError, match="--cache_latents was .*moved/cache' and is .*other'"):
        train_lora("moved", 3, *options, "--resume_from_checkpoint", "latest", "--cache_latents", tmp_path / "other")


# Early stopping


def held_out_losses(folder: Path) -> list[float]:
    reports = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [report["held_out_loss"] for report in reports if "held_out_loss" in report]


def test_best_adapter_is_kept(train_lora, trainers, scenes, tmp_path, monkeypatch):
    found = iter([0.5, 0.4, 0.6, 0.7, 0.1])
    kept = []

    def measure(stopping, model):
        kept.append([parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad])
        return {HELD_OUT_LOSS: next(found)}

    monkeypatch.setattr(EarlyStopping, "measure", measure)
    options = ["--held_out", scenes, "--early_stopping_patience", 2, "--validation_steps", 1, "--learning_rate", 0.01]
    options += ["--checkpointing_steps", 1]
    losses = train_lora("out", 9, *options)
    assert list(losses) == [1, 2, 3, 4] and held_out_losses(tmp_path / "out") == pytest.approx([0.5, 0.4, 0.6, 0.7])
    exported = {tensor.sum().item() for tensor in load_file(tmp_path / "out" / FILE).values()}
    assert exported == {tensor.sum().item() for tensor in kept[1]}
    assert exported != {tensor.sum().item() for tensor in kept[3]}

    said = "- steps: 4; weights of step 2, the best on held-out clips"
    assert said in (tmp_path / "out" / "README.md").read_text()

    # A run that goes on knows the best and how long it has waited.
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    (tmp_path / "out" / FILE).unlink()
    found = iter([0.7, 0.1])
    assert train_lora("out", 9, *options, "--resume_from_checkpoint", "latest") == losses
    assert {tensor.sum().item() for tensor in load_file(tmp_path / "out" / FILE).values()} == exported

    # One that had ended does not train on: it writes the adapter again.
    (tmp_path / "out" / FILE).unlink()
    assert train_lora("out", 9, *options, "--resume_from_checkpoint", "latest") == losses
    assert {tensor.sum().item() for tensor in load_file(tmp_path / "out" / FILE).values()} == exported


def test_held_out_loss(train_lora, trainers, scenes, tmp_path):
    """It depends only on the weights, has no masks, and survives a resume."""
    options = ["--held_out", scenes, "--validation_steps", 1, "--checkpointing_steps", 1, "--train_batch_size", 3]
    unbroken = train_lora("out", 3, *options)
    found = held_out_losses(tmp_path / "out")
    stopping = trainers[0].early_stopping
    assert len(stopping.samples) == 8 * 7 and len(set(found)) == 3
    assert not any(sample.task_spec.drop_context for sample in stopping.samples)
    batch = stopping.maker.make(stopping.samples[:8])
    assert batch.text_mask.all() and batch.video_mask.all()
    assert not torch.equal(batch.noise[0], batch.noise[7])  # the same clip in another draw
    assert stopping.measure(trainers[0].model.eval())[HELD_OUT_LOSS] == pytest.approx(found[-1], rel=1e-6)

    for step in (2, 3):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{step}")
    assert train_lora("out", 3, *options, "--resume_from_checkpoint", "latest") == unbroken
    assert held_out_losses(tmp_path / "out") == found
    assert trainers[1].early_stopping.best == stopping.best


def test_no_usable_held_out_clip(train_lora, tmp_path, scenes):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--held_out .*empty"):
        train_lora("out", 1, "--held_out", tmp_path / "empty")
    with pytest.raises(ValueError, match="--held_out .* has no usable clip: .*gone.wav"):
        (tmp_path / "list.jsonl").write_text('{"audio": "gone.wav", "caption": "rain"}\n')
        train_lora("out", 1, "--held_out", tmp_path / "list.jsonl", "--no_cache_latents")


# The model card and the Hub


@pytest.fixture
def hub(monkeypatch):
    uploads = []
    monkeypatch.setattr(
        export, "create_repo", lambda repo_id, **options: RepoUrl(f"https://huggingface.co/someone/{repo_id}")
    )
    monkeypatch.setattr(export, "auth_check", lambda repo_id, **options: None)
    monkeypatch.setattr(export, "upload_folder", lambda **options: uploads.append(options))
    return uploads


def test_uploaded_adapter(train_lora, hub, small_model, tmp_path, monkeypatch):
    options = ["--push_to_hub", "--hub_token", "hf_secret", "--trigger_words", "zorble", "a quux"]
    options += ["--data_license", "CC0-1.0", "--validation_inference_steps", 2, "--rank", 2]
    train_lora("out", 1, *options)
    (upload,) = hub
    assert upload["repo_id"] == "someone/out"
    assert upload["allow_patterns"] == ["README.md", FILE, "samples/*"]
    assert sorted(path.name for path in (tmp_path / "out" / "samples").iterdir()) == ["000.wav", "001.wav"]
    text = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "A LoRA adapter of rank 2 for [AudioX](https://arxiv.org/abs/2503.10522), trained on `audiox-small`",
        "Trigger words: `zorble`, `a quux`.",
        'pipe.load_lora_weights("someone/out")',
        'audio = pipe(prompt="zorble").audios[0]',
        'zorble:\n\n<audio controls src="samples/000.wav"></audio>',
        "Data: CC0-1.0.",
        "- alpha: 2",
        "- modules: `to_k`, `to_out.0`, `to_q`, `to_v`",
        "| 1 |",
    ):
        assert said in text, said
    for secret in ("hf_secret", str(tmp_path), str(small_model.parent)):
        assert secret not in text and secret.encode() not in (tmp_path / "out" / FILE).read_bytes()

    # Its code runs, with the adapter beside the base model.
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "out").symlink_to(tmp_path / "out")
    (tmp_path / "audiox-small").symlink_to(small_model)
    exec(code, {})
    assert Path("sound.wav").exists()


def test_samples_of_validation_prompts(train_lora, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a bell", "seed": 3, "length": 0.5}\n{"prompt": "rain"}\n{"prompt": "wind"}\n')
    options = ["--validation_prompts", prompts, "--validation_inference_steps", 2]
    train_lora("out", 1, *options, "--trigger_words", "zorble")
    samples = tmp_path / "out" / "samples"
    assert load_audio(samples / "000.wav")[0].shape[1] == 4000 and len(list(samples.iterdir())) == 2
    assert "a bell:\n" in (tmp_path / "out" / "README.md").read_text()


def test_failing_sample_does_not_stop_the_export(train_lora, tmp_path, caplog):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a bell", "length": 1e-6}\n')
    train_lora("out", 1, "--validation_prompts", tmp_path / "prompts.jsonl", "--validation_inference_steps", 1)
    assert (tmp_path / "out" / FILE).exists() and not list((tmp_path / "out" / "samples").iterdir())
    assert any("samples of the model card: `audio_length" in record.getMessage() for record in caplog.records)


def test_card_with_a_base_on_the_hub(tmp_path):
    config = {"r": 4, "lora_alpha": 8, "use_dora": True, "use_rslora": False, "target_modules": {"to_q"}}
    args = parse("--trigger_words", 'a "zorble"', "--with_prior_preservation", "--class_data_dir", tmp_path)
    made = ModelCard(lora_card(args, config, [], [{"step": 1, "loss": 0.5}]))
    assert (made.data.base_model, made.data.base_model_relation) == ("someone/audiox", "adapter")
    assert made.data.instance_prompt == 'a "zorble"' and made.data.datasets == ["someone/sounds"]
    assert "lora" in made.data.tags and made.data.library_name == "diffusers"
    assert "- kind: DoRA\n" in made.text and "- prior preservation: weight 1, 50 files" in made.text
    (code,) = re.findall(r"```python\n(.*?)```", made.text, re.S)
    compile(code, "card", "exec")
    assert "Data: not stated." in made.text and "## Samples" not in made.text


def test_card_with_the_embedded_base():
    config = {"r": 4, "lora_alpha": 8, "use_dora": False, "use_rslora": False, "target_modules": {"to_q"}}
    args = parse("--pretrained_model_name_or_path", "audiox-tiny")
    made = ModelCard(lora_card(args, config, [], [{"step": 1, "loss": 0.5}]))
    assert not {"base_model", "base_model_relation"} & made.data.to_dict().keys()
    assert 'AudioXPipeline.from_pretrained("audiox-tiny")' in made.text


# What is refused


def refused(capsys, *options: object) -> str:
    with pytest.raises(SystemExit) as error:
        parse(*options)
    assert error.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


BAD_VALUES = {
    "rank": [0, -1, 1.5],
    "lora_alpha": [0, -1, "nan", "inf"],
    "lora_dropout": [-0.1, 1, "nan"],
    "prior_loss_weight": [0, -1, "nan", "inf"],
    "num_class_sounds": [0, -1],
    "early_stopping_patience": [0, -1],
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_numbers_out_of_range(capsys, name):
    for value in BAD_VALUES[name]:
        said = refused(capsys, f"--{name}={value}")
        assert name in said and (str(value) in said or f"{value:g}" in said)


def test_every_number_is_checked():
    parser = build_parser(LoraArguments, "")
    numbers = {action.dest for action in parser._actions if action.type in (int, float)}
    shared = {action.dest for action in build_parser(TrainingArguments, "")._actions}
    assert numbers - shared == set(BAD_VALUES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--init_lora_weights", "best"], "--init_lora_weights must be one of default, .*got 'best'"),
        (["--init_lora_weights", "pissa", "--use_dora"], "leave out --use_dora"),
        (["--init_lora_weights", "orthogonal", "--rank", 3], "needs an even --rank, got 3"),
        (
            ["--no_cache_latents", "--cache_latents", "there"],
            "--no_cache_latents cannot be combined with --cache_latents",
        ),
        (["--from_scratch"], "unrecognized arguments: --from_scratch"),
        (["--train_vae"], "unrecognized arguments: --train_vae"),
        (["--quantization", "2bit"], "--quantization: invalid choice: '2bit'"),
    ],
)
def test_conflicting_options(capsys, options, said):
    assert re.search(said, refused(capsys, *options))


def test_unavailable_quantization(capsys, monkeypatch):
    packages = {"bnb_8bit": "bitsandbytes", "bnb_4bit": "bitsandbytes", "torchao_int8": "torchao"}
    for name, package in packages.items():
        monkeypatch.setitem(quantization.QUANTIZATIONS, name, (package, lambda: False))
        assert f"--quantization {name} needs {package}: pip install" in refused(capsys, "--quantization", name)
        monkeypatch.setitem(quantization.QUANTIZATIONS, name, (package, lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("bnb_8bit", "bnb_4bit"):
        assert f"--quantization {name} needs a GPU" in refused(capsys, "--quantization", name)
    assert parse("--quantization", "torchao_int8").quantization == "torchao_int8"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parse("--quantization", "bnb_4bit").quantization == "bnb_4bit"
    said = refused(capsys, "--quantization", "bnb_8bit", "--init_lora_weights", "pissa")
    assert "changes the base model's weights; leave out --quantization" in said


def test_quantization_reaches_the_pipeline(monkeypatch, pipe):
    """bnb_8bit is the config that needs no package."""
    asked = {}
    monkeypatch.setitem(quantization.QUANTIZATIONS, "bnb_8bit", ("bitsandbytes", lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(AudioXPipeline, "from_pretrained", lambda name, **options: asked.update(options) or pipe)
    LoraTraining(parse("--quantization", "bnb_8bit")).load_pipeline(torch.bfloat16)
    half = dict.fromkeys(("transformer", "text_encoder", "image_encoder", "sync_encoder"), torch.bfloat16)
    assert asked["dtype"] == {**half, "default": torch.float32}
    mapping = asked["quantization_config"].quant_mapping
    assert set(mapping) == {"transformer"} and mapping["transformer"].load_in_8bit


def test_adapter_of_a_quantized_base_loads_on_the_whole_base(train_lora, trainers, monkeypatch, pipe, tmp_path):
    """The quantization config that diffusers adds to a network is not JSON and not part of its architecture."""
    monkeypatch.setitem(quantization.QUANTIZATIONS, "torchao_int8", ("torchao", lambda: True))
    monkeypatch.setattr(lora, "quantization_config", lambda name, dtype: None)
    load = AudioXPipeline.from_pretrained

    def load_quantized(*args, quantization_config, **options):
        quantized = load(*args, **options)
        quantized.transformer.register_to_config(quantization_config=object())
        return quantized

    with monkeypatch.context() as patch:
        patch.setattr(AudioXPipeline, "from_pretrained", load_quantized)
        train_lora("out", 1, "--quantization", "torchao_int8")
    assert "quantization_config" not in config_of(tmp_path / "out")["base_model.transformer"]
    pipe.load_lora_weights(tmp_path / "out")


def test_quantization_on_a_cpu_needs_float32(train_lora, monkeypatch):
    monkeypatch.setitem(quantization.QUANTIZATIONS, "torchao_int8", ("torchao", lambda: True))
    with pytest.raises(ValueError, match="--quantization torchao_int8 .*float32.*got --mixed_precision bf16"):
        train_lora("out", 1, "--quantization", "torchao_int8", "--mixed_precision", "bf16")


def test_unknown_target_modules(train_lora, tmp_path):
    said = "--target_modules to_x: AudioXTransformer2DModel has no such module, but .*ff.net.2, .*to_out.0, to_q"
    with pytest.raises(ValueError, match=said):
        train_lora("out", 1, "--target_modules", "to_q", "to_x")
    with pytest.raises(ValueError, match="--target_modules norm1: "):
        train_lora("out", 1, "--target_modules", "norm1")
    with pytest.raises(ValueError, match="--target_modules preprocess_conv and --init_lora_weights pissa: "):
        train_lora("out", 1, "--target_modules", "preprocess_conv", "--init_lora_weights", "pissa")
    assert not (tmp_path / "out" / FILE).exists()


def test_unusable_data(train_lora, small_model, tmp_path, scenes, capsys):
    (tmp_path / "empty").mkdir()
    options = ["--pretrained_model_name_or_path", str(small_model), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="^error: `--dataset .*empty` cannot be opened"):
        main([*options, "--dataset", str(tmp_path / "empty"), "--max_train_steps", "1"], LoraTraining)
    with pytest.raises(ValueError, match="none of the first 7 rows can be used: is shorter than --min_seconds 3"):
        train_lora("short", 1, "--min_seconds", 3)


def test_failed_export_keeps_the_old_adapter(train_lora, tmp_path, monkeypatch):
    train_lora("out", 1)
    before = (tmp_path / "out" / FILE).read_bytes()

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr("audiox_diffusers.training.methods.lora.lora_card", fail)
    with pytest.raises(OSError, match="no space left"):
        train_lora("out", 1, "--rank", 3)
    assert (tmp_path / "out" / FILE).read_bytes() == before and not list((tmp_path / "out").glob(".*"))
