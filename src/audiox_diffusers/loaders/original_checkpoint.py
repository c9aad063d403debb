"""From the files of a released AudioX checkpoint to its components: reading, sizes, filling."""

import copy
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
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

from ..models import (
    AudioXAutoencoderOobleck,
    AudioXConditioner,
    AudioXMMTransformer2DModel,
    AudioXTransformer2DModel,
    SynchformerVisionModel,
)
from .checkpoint_mapping import (
    convert_state_dict,
    convert_synchformer_state_dict,
    convert_vae_state_dict,
    fold_weight_norm,
    is_mmdit,
    released_name,
)
from .original_config import component_configs, read_objective

logger = logging.get_logger(__name__)

DEFAULT_TEXT_ENCODER = "google-t5/t5-base"

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")


def check_weights(component: str, model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """
    Compare the tensors of a component with those it needs.

    Raises:
        ValueError: naming what is missing, left over or of another shape: the config contradicts the weights.
    """
    mmdit = isinstance(model, AudioXMMTransformer2DModel)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    faults = [f"{released_name(component, name, mmdit)} is missing" for name in needed if name not in given]
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


def _transformer_class(state_dict: Mapping[str, torch.Tensor]) -> type[torch.nn.Module]:
    return AudioXMMTransformer2DModel if is_mmdit(state_dict) else AudioXTransformer2DModel


def transformer_config(
    transformer_class: type[torch.nn.Module], config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The config of a released transformer; `ValueError` if it is of another class than `transformer_class`."""
    actual = _transformer_class(state_dict)
    if actual is not transformer_class:
        raise ValueError(f"the file holds an {actual.__name__}, not an {transformer_class.__name__}")
    return component_configs(config, state_dict)["transformer"]


def find_files(
    checkpoint: str | Path, config: str | Path | dict | None, **hub_kwargs
) -> tuple[Path, dict, Callable[[str], Path | None]]:
    """
    The checkpoint file, and the released config as a dict, of a file, a folder or a Hub id; and a function that finds
    a file by its name beside the checkpoint, `None` where there is none.
    """
    path = Path(checkpoint)
    from_hub = False
    if path.is_dir():
        names = [name for name in ("model.safetensors", "model.ckpt") if (path / name).is_file()]
        if not names:
            raise FileNotFoundError(f"{path}: no model.safetensors or model.ckpt in this folder")
        path = path / names[0]
    elif not path.is_file():
        from_hub = True
        try:
            path = Path(hf_hub_download(str(checkpoint), "model.ckpt", **hub_kwargs))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(
                f"{checkpoint}: no such file, folder or Hub checkpoint ({_reason(error)})"
            ) from None

    def beside(name: str) -> Path | None:
        if from_hub:
            try:
                return Path(hf_hub_download(str(checkpoint), name, **hub_kwargs))
            except (HfHubHTTPError, LocalEntryNotFoundError):
                return None
        return path.with_name(name) if path.with_name(name).is_file() else None

    config = beside("config.json") or path.with_name("config.json") if config is None else config
    if not isinstance(config, Mapping):
        if not Path(config).is_file():
            raise FileNotFoundError(f"`config`: no such file {config}")
        try:
            config = json.loads(Path(config).read_text())
        except ValueError as error:
            raise ValueError(f"`config`: {config} is not JSON ({error})") from None
    return path, config, beside


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


def load_vae(
    config: dict, state_dict: Mapping[str, torch.Tensor], vae: Path | None, dtype: torch.dtype | None
) -> AudioXAutoencoderOobleck:
    """The VAE from the checkpoint, or from a file of its own where the checkpoint does not hold it."""
    if not state_dict:
        if vae is None:
            raise FileNotFoundError("`vae`: the checkpoint does not hold the VAE; give the path of vae.ckpt")
        state_dict = convert_vae_state_dict(read_state_dict(vae))
        if not state_dict:
            raise ValueError(f"`vae`: {vae} holds no Oobleck VAE")
    with torch.device("meta"):
        model = AudioXAutoencoderOobleck(**config)
    return fill_component("vae", model, fold_weight_norm(state_dict), dtype)


def load_sync_encoder(
    synchformer: SynchformerVisionModel | Path | None, dtype: torch.dtype | None
) -> SynchformerVisionModel:
    """Synchformer's visual tower as given, or from its file, with heads 64 wide."""
    if isinstance(synchformer, SynchformerVisionModel):
        return synchformer
    if synchformer is None:
        raise FileNotFoundError(
            "`synchformer`: the checkpoint follows the timing of videos; give the path of synchformer_state_dict.pth"
        )
    state_dict = convert_synchformer_state_dict(read_state_dict(synchformer))
    hidden_size, _, tubelet_size, patch_size, _ = state_dict["patch_embed.weight"].shape
    with torch.device("meta"):
        model = SynchformerVisionModel(
            image_size=patch_size * math.isqrt(state_dict["space_position_embed"].shape[2]),
            patch_size=patch_size,
            tubelet_size=tubelet_size,
            num_frames=tubelet_size * state_dict["time_position_embed"].shape[1],
            hidden_size=hidden_size,
            num_hidden_layers=len([name for name in state_dict if name.endswith("attn_time.to_q.weight")]),
            num_attention_heads=hidden_size // 64,
        )
    return fill_component("sync_encoder", model, state_dict, dtype)


def load_components(
    checkpoint: str | Path,
    config: str | Path | dict | None,
    text_encoder: T5EncoderModel | str | Path | None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    image_encoder_config: CLIPVisionConfig | dict | str | Path | None,
    vae: str | Path | None,
    synchformer: SynchformerVisionModel | str | Path | None,
    dtype: torch.dtype | None,
    **hub_kwargs,
) -> tuple[dict[str, Any], str]:
    """
    The networks and the tokenizer of a released checkpoint, and its objective, `"v"` or `"rectified_flow"`; see
    `load_original_checkpoint` for the arguments.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a floating-point type, got {dtype}.")
    path, config, beside = find_files(checkpoint, config, **hub_kwargs)
    state_dict = read_state_dict(path)
    configs, objective = component_configs(config, state_dict), read_objective(config)
    transformer_class = _transformer_class(state_dict)
    del state_dict

    # Each component maps the file anew, so that the memory of what has been cast or folded is let go of.
    def tensors(component: str) -> dict[str, torch.Tensor]:
        return convert_state_dict(read_state_dict(path))[component]

    with torch.device("meta"):
        transformer = transformer_class(**configs["transformer"])
        conditioner = AudioXConditioner(**configs["conditioner"])
    # CLIP has buffers that are not in the checkpoint.
    with init_empty_weights(include_buffers=False):
        image_encoder = CLIPVisionModelWithProjection(read_image_encoder_config(image_encoder_config))

    sync_encoder = None
    if conditioner.config.num_sync_tokens is None and synchformer is not None:
        raise ValueError("`synchformer`: the checkpoint has no use for it; leave it out")
    if conditioner.config.num_sync_tokens is not None:
        if synchformer is None:
            synchformer = beside("synchformer_state_dict.pth")
        elif not isinstance(synchformer, SynchformerVisionModel):
            synchformer = Path(synchformer)
        sync_encoder = load_sync_encoder(synchformer, dtype)
    vae_tensors = tensors("vae")
    if vae_tensors and vae is not None:
        raise ValueError("`vae`: the checkpoint holds the VAE; leave it out")
    if not vae_tensors:
        vae = beside("vae.ckpt") if vae is None else Path(vae)
    components = {
        "transformer": fill_component("transformer", transformer, tensors("transformer"), dtype),
        "conditioner": fill_component("conditioner", conditioner, tensors("conditioner"), dtype),
        "vae": load_vae(configs["vae"], vae_tensors, vae, dtype),
        "image_encoder": fill_component("image_encoder", image_encoder, tensors("image_encoder"), dtype),
        "sync_encoder": sync_encoder,
        "text_encoder": load_text_encoder(text_encoder, configs["conditioner"]["condition_dim"], dtype),
        "tokenizer": load_tokenizer(tokenizer, text_encoder, configs["conditioner"]["num_text_tokens"]),
    }
    return components, objective
