"""From the files of a released AudioX checkpoint to its components: reading, sizes, filling."""

import copy
import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from ..models import AudioXAutoencoderOobleck, AudioXConditioner, AudioXTransformer2DModel
from .checkpoint_mapping import convert_state_dict, fold_weight_norm, released_name

logger = logging.get_logger(__name__)

DEFAULT_TEXT_ENCODER = "google-t5/t5-base"

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")

# The width of a head in the transformer over the video's frames: not in the tensors, and the same in every release.
_TEMPORAL_HEAD_DIM = 64
# The audio prompt is ten seconds long wherever the number of its tokens says so.
_PROMPT_SECONDS = 10


def component_configs(config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> dict[str, dict]:
    """
    The configs of `transformer`, `conditioner` and `vae` from a released config and the shapes of its tensors.

    Args:
        config: the `config.json` of the release.
        state_dict: its tensors by their released names; meta tensors will do.

    Raises:
        ValueError: naming what the config or the checkpoint lacks, or a kind of model that is not AudioX.
    """

    def setting(*path: str | int, kind: type = int):
        value = config
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"`config` is not an AudioX config: it lacks {'.'.join(map(str, path))}") from None
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 1)):
            wanted = "a whole number above 0" if kind is int else f"a {kind.__name__}"
            raise ValueError(f"`config`: {'.'.join(map(str, path))} must be {wanted}, got {value!r}")
        return value

    def shape(key: str) -> torch.Size:
        if key not in state_dict:
            raise ValueError(f"not an AudioX checkpoint: it lacks {key}")
        return state_dict[key].shape

    if config.get("model_type") != "diffusion_cond":
        raise ValueError(f"`config`: the model_type must be 'diffusion_cond', got {config.get('model_type')!r}")
    if setting("model", "diffusion", "type", kind=str) != "dit" or config["model"]["diffusion"].get("gate", False):
        raise ValueError("`config`: the transformer must be a 'dit' without gate")
    if (objective := config["model"]["diffusion"].get("diffusion_objective", "v")) != "v":
        raise ValueError(f"`config`: the diffusion_objective must be 'v', got {objective!r}")
    conditioners = {
        entry.get("id"): entry
        for entry in setting("model", "conditioning", "configs", kind=list)
        if isinstance(entry, dict)
    }
    for name, kind in {"video_prompt": "clip", "text_prompt": "t5", "audio_prompt": "audio_autoencoder"}.items():
        if conditioners.get(name, {}).get("type") != kind:
            raise ValueError(
                f"`config`: {name} must be of type {kind!r}, got {conditioners.get(name, {}).get('type')!r}"
            )
    num_text_tokens = conditioners["text_prompt"].get("config", {}).get("max_length")
    if not isinstance(num_text_tokens, int) or num_text_tokens < 1:
        raise ValueError(
            f"`config`: max_length of text_prompt must be a whole number above 0, got {num_text_tokens!r}"
        )

    autoencoder = ("model", "pretransform", "config")
    encoder, decoder = (*autoencoder, "encoder", "config"), (*autoencoder, "decoder", "config")
    hop = setting(*autoencoder, "downsampling_ratio")
    strides = setting(*encoder, "strides", kind=list)
    audio_channels = setting(*encoder, "in_channels")
    for what, agrees in {
        "downsampling_ratio is not the product of the strides": hop == math.prod(strides),
        "the decoder's strides are not the encoder's": setting(*decoder, "strides", kind=list) == strides,
        "the decoder's c_mults are not the encoder's": setting(*decoder, "c_mults", kind=list)
        == setting(*encoder, "c_mults", kind=list),
        "audio_channels are not the encoder's in_channels": config.get("audio_channels", audio_channels)
        == audio_channels,
        "sample_size is less than one latent frame": setting("sample_size") >= hop,
    }.items():
        if not agrees:
            raise ValueError(f"`config` contradicts itself: {what}")
    sample_rate = setting("sample_rate")
    inner_dim = setting("model", "diffusion", "config", "embed_dim")
    num_heads = setting("model", "diffusion", "config", "num_heads")

    head_dim = inner_dim // num_heads
    # The number of heads is in no tensor, but the rotated part of a head is.
    if shape("model.model.transformer.rotary_pos_emb.inv_freq")[0] != max(head_dim // 2, 32) // 2:
        raise ValueError(f"`config` does not fit the weights: {num_heads} heads in a width of {inner_dim}")
    block = "model.model.transformer.layers.0."
    video, audio = "conditioner.conditioners.video_prompt.", "conditioner.conditioners.audio_prompt."
    num_audio_tokens = shape(audio + "empty_audio_feat")[1]
    num_video_frames = shape(video + "Temp_pos_embedding")[1]
    temporal_qkv = shape(video + "Temp_transformer.layers.0.0.fn.to_qkv.weight")
    prompt_samples = _PROMPT_SECONDS * sample_rate
    if prompt_samples // hop != num_audio_tokens:
        prompt_samples = num_audio_tokens * hop
    return {
        "vae": {
            "encoder_hidden_size": setting(*encoder, "channels"),
            "downsampling_ratios": strides,
            "channel_multiples": setting(*encoder, "c_mults", kind=list),
            "decoder_channels": setting(*decoder, "channels"),
            "decoder_input_channels": setting(*decoder, "latent_dim"),
            "audio_channels": audio_channels,
            "sampling_rate": sample_rate,
        },
        "transformer": {
            "sample_size": setting("sample_size") // hop,
            "in_channels": setting("model", "io_channels"),
            "num_layers": setting("model", "diffusion", "config", "depth"),
            "attention_head_dim": head_dim,
            "num_attention_heads": num_heads,
            "num_key_value_attention_heads": shape(block + "cross_attn.to_kv.weight")[0] // (2 * head_dim),
            "cross_attention_input_dim": setting("model", "diffusion", "config", "cond_token_dim"),
            "cross_attention_dim": shape("model.model.to_cond_embed.0.weight")[0],
            "time_proj_dim": 2 * shape("model.model.timestep_features.weight")[0],
            "ff_mult": shape(block + "ff.ff.2.weight")[1] // inner_dim,
        },
        "conditioner": {
            "condition_dim": setting("model", "conditioning", "cond_dim"),
            "num_text_tokens": num_text_tokens,
            "num_video_frames": num_video_frames,
            "num_frame_tokens": shape(video + "proj.weight")[1] // num_video_frames,
            "num_video_tokens": shape(video + "proj.weight")[0],
            "num_temporal_layers": len([key for key in state_dict if key.endswith(".0.fn.to_qkv.weight")]),
            "num_temporal_heads": temporal_qkv[0] // (3 * _TEMPORAL_HEAD_DIM),
            "video_fps": setting("video_fps"),
            "latent_channels": shape(audio + "proj_out.weight")[1],
            "num_audio_tokens": num_audio_tokens,
            "audio_prompt_samples": prompt_samples,
        },
    }


def check_weights(component: str, model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """
    Compare the tensors of a component with those it needs.

    Raises:
        ValueError: naming what is missing, left over or of another shape: the config contradicts the weights.
    """
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    faults = [f"{released_name(component, name)} is missing" for name in needed if name not in given]
    faults += [f"{name} is left over" for name in given if name not in needed]
    faults += [
        f"{name} has the shape {list(given[name])} where the config asks for {list(needed[name])}"
        for name in needed
        if name in given and given[name] != needed[name]
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ValueError(f"the config does not fit the weights of the {component}: {'; '.join(faults[:3])}{more}")


def fill_component(
    component: str,
    model: torch.nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
) -> torch.nn.Module:
    """
    Give an empty `model`, whose parameters are on the meta device, the very tensors of `state_dict`, or copies cast
    to `dtype`; what its class keeps in float32 is then copied as float32. In evaluation mode. See [`check_weights`]
    for errors.
    """
    check_weights(component, model, state_dict)
    kept = set(model._keep_in_fp32_modules or [])
    filled = {}
    for name, tensor in state_dict.items():
        target = torch.float32 if kept & set(name.split(".")) else dtype or tensor.dtype
        # With a dtype everything is copied: a single tensor that is not would keep the whole file mapped.
        filled[name] = tensor.to(target, copy=dtype is not None)
    model.load_state_dict(filled, assign=True)
    return model.eval()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """
    The tensors of a `.ckpt` (a pickle, read with `weights_only=True`) or `.safetensors` file, memory-mapped.

    Raises:
        ValueError: if the file is damaged, holds code, or is no checkpoint.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        checkpoint = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError(f"{path}: not a checkpoint, or damaged") from None
        raise ValueError(f"{path}: refused, the pickle holds code ({found[1]}) beside tensors") from None
    except (RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path}: not a checkpoint, or damaged ({_reason(error)})") from None
    state_dict = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not state_dict or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path}: not an AudioX checkpoint, it holds no state dict")
    return state_dict


def find_files(checkpoint: str | Path, config: str | Path | dict | None, **hub_kwargs) -> tuple[Path, dict]:
    """The checkpoint file, and the released config as a dict, of a file, a folder or a Hub id."""
    path = Path(checkpoint)
    if path.is_dir():
        names = [name for name in ("model.safetensors", "model.ckpt") if (path / name).is_file()]
        if not names:
            raise FileNotFoundError(f"{path}: no model.safetensors or model.ckpt in this folder")
        path, config = path / names[0], path / "config.json" if config is None else config
    elif not path.is_file():
        try:
            path = Path(hf_hub_download(str(checkpoint), "model.ckpt", **hub_kwargs))
            config = hf_hub_download(str(checkpoint), "config.json", **hub_kwargs) if config is None else config
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(
                f"{checkpoint}: no such file, folder or Hub checkpoint ({_reason(error)})"
            ) from None
    elif config is None:
        config = path.with_name("config.json")

    if not isinstance(config, Mapping):
        if not Path(config).is_file():
            raise FileNotFoundError(f"`config`: no such file {config}")
        try:
            config = json.loads(Path(config).read_text())
        except ValueError as error:
            raise ValueError(f"`config`: {config} is not JSON ({error})") from None
    return path, config


def load_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path | None, text_encoder: Any, max_length: int
) -> PreTrainedTokenizerBase | None:
    """
    The tokenizer, set to pad to `max_length`. Where none is given it is looked for beside the text encoder, then as
    that of `google-t5/t5-base`; `None`, with a warning, where neither is found.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = max_length
        return tokenizer
    if tokenizer is not None:
        try:
            return _read_tokenizer(tokenizer, max_length)
        except (OSError, ValueError) as error:
            raise ValueError(f"`tokenizer`: {tokenizer} could not be loaded ({_reason(error)})") from None
    sources = [text_encoder] if isinstance(text_encoder, (str, Path)) else []
    for source in [*sources, DEFAULT_TEXT_ENCODER]:
        try:
            return _read_tokenizer(source, max_length)
        except (OSError, ValueError):
            continue
    logger.warning(
        "No tokenizer was found: the pipeline takes `prompt_embeds` only, until one is given as `tokenizer`."
    )
    return None


def _read_tokenizer(source: str | Path, max_length: int) -> PreTrainedTokenizerBase:
    # From a folder with a T5 config alone, transformers makes a tokenizer without a vocabulary.
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _TOKENIZER_FILES):
        raise FileNotFoundError(f"none of {', '.join(_TOKENIZER_FILES)} in this folder")
    return AutoTokenizer.from_pretrained(source, model_max_length=max_length)


def read_image_encoder_config(config: CLIPVisionConfig | Mapping | str | Path | None) -> CLIPVisionConfig:
    """The config of CLIP's vision tower as given, from a dict, a file, a folder or a Hub id; ViT-B/32's by default."""
    if config is None:
        return CLIPVisionConfig(projection_dim=512)
    if isinstance(config, CLIPVisionConfig):
        return config
    if isinstance(config, Mapping):
        return CLIPVisionConfig(**config)
    try:
        return CLIPVisionConfig.from_pretrained(config)
    except OSError as error:
        raise FileNotFoundError(f"`image_encoder_config`: {config} could not be loaded ({_reason(error)})") from None


def load_text_encoder(
    text_encoder: T5EncoderModel | str | Path | None, condition_dim: int, dtype: torch.dtype | None
) -> T5EncoderModel:
    """T5 as given, or from a folder or Hub id; it must be `condition_dim` wide."""
    if not isinstance(text_encoder, T5EncoderModel):
        source = DEFAULT_TEXT_ENCODER if text_encoder is None else text_encoder
        try:
            text_encoder = T5EncoderModel.from_pretrained(source, dtype=dtype or torch.float32)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise FileNotFoundError(f"`text_encoder`: {source} could not be loaded ({_reason(error)})") from None
    if text_encoder.config.d_model != condition_dim:
        raise ValueError(
            f"`text_encoder` is {text_encoder.config.d_model} wide, the checkpoint expects {condition_dim}."
        )
    return text_encoder


def load_components(
    checkpoint: str | Path,
    config: str | Path | dict | None,
    text_encoder: T5EncoderModel | str | Path | None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    image_encoder_config: CLIPVisionConfig | dict | str | Path | None,
    dtype: torch.dtype | None,
    **hub_kwargs,
) -> dict[str, Any]:
    """The networks and the tokenizer of a released checkpoint; see `load_original_checkpoint` for the arguments."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a floating-point type, got {dtype}.")
    path, config = find_files(checkpoint, config, **hub_kwargs)
    configs = component_configs(config, read_state_dict(path))

    # Each component maps the file anew, so that the memory of what has been cast or folded is let go of.
    def tensors(component: str) -> dict[str, torch.Tensor]:
        return convert_state_dict(read_state_dict(path))[component]

    with torch.device("meta"):
        transformer = AudioXTransformer2DModel(**configs["transformer"])
        conditioner = AudioXConditioner(**configs["conditioner"])
        vae = AudioXAutoencoderOobleck(**configs["vae"])
    # CLIP has buffers that are not in the checkpoint.
    with init_empty_weights(include_buffers=False):
        image_encoder = CLIPVisionModelWithProjection(read_image_encoder_config(image_encoder_config))

    return {
        "transformer": fill_component("transformer", transformer, tensors("transformer"), dtype),
        "conditioner": fill_component("conditioner", conditioner, tensors("conditioner"), dtype),
        "vae": fill_component("vae", vae, fold_weight_norm(tensors("vae")), dtype),
        "image_encoder": fill_component("image_encoder", image_encoder, tensors("image_encoder"), dtype),
        "text_encoder": load_text_encoder(text_encoder, configs["conditioner"]["condition_dim"], dtype),
        "tokenizer": load_tokenizer(tokenizer, text_encoder, configs["conditioner"]["num_text_tokens"]),
    }
