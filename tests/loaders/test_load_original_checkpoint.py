import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from audiox_diffusers import AudioXTransformer2DModel, load_original_checkpoint


@pytest.fixture
def release(tmp_path, fixtures_path, tokenizer):
    """A copy of the small release to spoil, and a function that loads it."""
    folder = tmp_path / "release"
    shutil.copytree(fixtures_path / "audiox", folder)

    def load(source=folder, **kwargs):
        defaults = {
            "text_encoder": folder / "text_encoder",
            "tokenizer": tokenizer,
            "image_encoder_config": folder / "image_encoder" / "config.json",
        }
        return load_original_checkpoint(source, **{**defaults, **kwargs})

    return folder, load


def read(folder):
    return torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]


def edit_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_file_folder_and_safetensors_give_the_same(release):
    folder, load = release
    from_folder = load()
    from_file = load(folder / "model.ckpt", config=json.loads((folder / "config.json").read_text()))
    save_file({key: tensor.clone() for key, tensor in read(folder).items()}, folder / "model.safetensors")
    from_safetensors = load(folder / "model.safetensors")
    for name in ("transformer", "conditioner", "vae", "image_encoder"):
        expected = from_folder.components[name].state_dict()
        for other in (from_file, from_safetensors):
            actual = other.components[name].state_dict()
            assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_dtype(release):
    _, load = release
    pipe = load(dtype=torch.bfloat16)
    assert pipe.transformer.dtype == pipe.conditioner.dtype == pipe.image_encoder.dtype == torch.bfloat16
    assert pipe.transformer.time_proj.weight.dtype == torch.float32
    assert {parameter.dtype for parameter in pipe.vae.decoder.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in pipe.vae.encoder.parameters()} == {torch.bfloat16}
    audios = pipe(prompt="rain", num_inference_steps=2, output_type="pt").audios
    assert audios.dtype == torch.float32 and audios.isfinite().all()

    pipe = load(dtype={"transformer": torch.bfloat16, "default": torch.float32})
    assert pipe.transformer.dtype == torch.bfloat16
    assert pipe.conditioner.dtype == pipe.image_encoder.dtype == pipe.text_encoder.dtype == torch.float32


def test_tokenizer_is_copied_and_set(release, tokenizer):
    _, load = release
    before = tokenizer.model_max_length
    assert load().tokenizer.model_max_length == 10
    assert tokenizer.model_max_length == before


def test_without_tokenizer(release, golden):
    _, load = release
    pipe = load(tokenizer=None)
    assert pipe.tokenizer is None
    assert pipe(prompt_embeds=golden["cond.text.tokens"], num_inference_steps=1).audios.shape == (2, 2, 192)
    with pytest.raises(ValueError, match="prompt_embeds"):
        pipe(prompt="rain")


def test_missing_files(release, tmp_path):
    folder, load = release
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere" / "model.ckpt", config={})
    with pytest.raises(FileNotFoundError, match="config"):
        load(config=tmp_path / "absent.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="model.ckpt"):
        load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="text_encoder"):
        load(text_encoder=tmp_path / "empty")


class Payload:
    def __reduce__(self):
        return (print, ("this code ran",))


def test_pickle_with_code_is_refused(release, capsys):
    folder, load = release
    torch.save({"state_dict": {"model.weight": Payload()}}, folder / "model.ckpt")
    with pytest.raises(ValueError, match=r"refused, because the pickle contains code \(.*print\)"):
        load()
    (folder / "model.ckpt").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(ValueError, match=r"refused, because the pickle contains code \(.*print\)"):
        load()
    assert "this code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("size", [0, 1000, 100_000])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_damaged_file(release, name, size):
    folder, load = release
    if name == "model.safetensors":
        save_file({key: tensor.clone() for key, tensor in read(folder).items()}, folder / name)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:size])
    with pytest.raises(ValueError, match=name):
        load(folder / name)


def test_file_of_an_old_torch(release):
    folder, load = release
    expected = load(dtype=torch.float32).transformer.state_dict()
    torch.save({"state_dict": read(folder)}, folder / "model.ckpt", _use_new_zipfile_serialization=False)
    actual = load().transformer.state_dict()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_half_precision_file(release):
    """What must be float32 becomes so, whatever the file holds."""
    folder, load = release
    torch.save({"state_dict": {key: tensor.half() for key, tensor in read(folder).items()}}, folder / "model.ckpt")
    pipe = load()
    assert pipe.transformer.dtype == torch.float16
    assert pipe.transformer.time_proj.weight.dtype == pipe.vae.decoder.conv1.weight.dtype == torch.float32


def test_cast_weights_do_not_hold_the_file(release):
    """A single tensor of the file's memory would keep all of it mapped."""
    folder, load = release
    pipe = load(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    data = (folder / "model.ckpt").read_bytes()
    with open(folder / "model.ckpt", "r+b") as file:
        file.write(bytes(len(data)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.transformer.state_dict().items())


def test_another_model(release):
    folder, load = release
    torch.save({"state_dict": {"unet.conv_in.weight": torch.zeros(2)}}, folder / "model.ckpt")
    with pytest.raises(ValueError, match="not an AudioX checkpoint"):
        load()
    torch.save({"epoch": 3}, folder / "model.ckpt")
    with pytest.raises(ValueError, match="Expected a state dict, alone or under state_dict.*found epoch"):
        load()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "diffusion", "config", "depth"), 3, r"transformer_blocks\.2\..*is missing"),
        (("model", "diffusion", "config", "depth"), 1, r"transformer_blocks\.1\..*is left over"),
        (("model", "diffusion", "config", "embed_dim"), 64, "does not fit"),
        (("model", "diffusion", "config", "num_heads"), 1, "1 heads"),
        (("model", "diffusion", "type"), "mmdit", "'dit'"),
        (("model", "diffusion", "gate"), True, "gate_type_config"),
        (("model", "io_channels"), 16, "preprocess_conv"),
        (("model", "conditioning", "cond_dim"), 32, "wide|has the shape"),
        (("model", "conditioning", "configs", 0, "type"), "clip-large", "video_prompt must be of type clip"),
        (("model", "pretransform", "config", "encoder", "config", "channels"), 16, "vae"),
        (
            ("model", "pretransform", "config", "encoder", "config", "channels"),
            None,
            "encoder.config.channels must be",
        ),
        (("model", "pretransform", "config", "decoder", "config", "strides"), [8, 8], "decoder's strides"),
        (("model", "pretransform", "config", "downsampling_ratio"), 7, "downsampling_ratio"),
        (("model", "diffusion", "config", "num_heads"), 0, "num_heads must be a whole number above 0"),
        (("model", "diffusion", "diffusion_objective"), "epsilon", "diffusion_objective"),
        (("model", "conditioning", "configs"), 3, "configs must be a list"),
        (("model", "conditioning", "configs", 1, "config"), {}, "max_length"),
        (("model_type",), "autoencoder", "model_type"),
        (("sample_size",), 0, "sample_size must be"),
        (("sample_size",), 4, "less than one latent frame"),
        (("sample_rate",), "x", "sample_rate must be"),
        (("audio_channels",), 1, "audio_channels"),
        (("video_fps",), 0, "video_fps must be"),
    ],
)
def test_config_that_contradicts_the_weights(release, path, value, message):
    folder, load = release

    def edit(config):
        for step in path[:-1]:
            config = config[step]
        config[path[-1]] = value

    edit_config(folder, edit)
    with pytest.raises(ValueError, match=message):
        load()


def test_config_that_lacks_a_setting(release):
    folder, load = release
    edit_config(folder, lambda config: config["model"]["diffusion"]["config"].pop("embed_dim"))
    with pytest.raises(ValueError, match="model.diffusion.config.embed_dim"):
        load()
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load()


def test_text_encoder_of_another_width(release):
    from transformers import T5Config, T5EncoderModel

    _, load = release
    narrow = T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="`text_encoder` is 32 wide"):
        load(text_encoder=narrow)
    with pytest.raises(ValueError, match="`dtype`"):
        load(dtype=torch.int8)
    with pytest.raises(ValueError, match="`synchformer`: the checkpoint does not use it"):
        load(synchformer="synchformer.pth")


def test_folder_without_a_vocabulary(release):
    folder, load = release
    with pytest.raises(ValueError, match="`tokenizer`.*tokenizer.json"):
        load(tokenizer=folder / "text_encoder")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformer_from_single_file(release, dtype):
    """diffusers' own way to read one component from a released file."""
    folder, load = release
    model = AudioXTransformer2DModel.from_single_file(
        str(folder / "model.ckpt"), original_config=str(folder / "config.json"), dtype=dtype
    )
    expected = load(dtype=None if dtype == torch.float32 else dtype).transformer.state_dict()
    actual = model.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key].to(actual[key].dtype)) for key in actual)
    assert model.dtype == dtype
