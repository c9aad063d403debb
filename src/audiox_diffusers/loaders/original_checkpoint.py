"""Build the components of a released AudioX checkpoint."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from ..messages import first_line
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
    find_vae,
    fold_weight_norm,
    is_mmdit,
    remove_prefix,
    vae_of,
)
from .encoders import check_encoder_keys
from .original_config import component_configs, fit_config, image_encoder_config, read_objective
from .original_files import OriginalFiles, read_state_dict

logger = logging.get_logger(__name__)

DEFAULT_TEXT_ENCODER = "google-t5/t5-base"

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")


@dataclass
class OtherParts:
    """What goes with a checkpoint; see `load_original_checkpoint`."""

    text_encoder: T5EncoderModel | str | Path | None = None
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None
    image_encoder_config: CLIPVisionConfig | dict | str | Path | None = None
    vae: str | Path | None = None
    synchformer: SynchformerVisionModel | str | Path | None = None


def check_weights(component: str, model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """
    Compare the tensors of a component with those that the model needs.

    Raises:
        ValueError: Tensors are missing, left over or of another shape. The message names them.
    """
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    faults = [f"{name} is missing" for name in needed if name not in given]
    faults += [f"{name} is left over" for name in given if name not in needed]
    faults += [
        f"{name} has the shape {list(given[name])} and should have {list(needed[name])}"
        for name in needed
        if name in given and given[name] != needed[name]
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ValueError(f"`config` does not fit the weights of the {component}: {'; '.join(faults[:3])}{more}")


def fill_component(
    component: str,
    model: torch.nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
) -> torch.nn.Module:
    """
    Give the tensors of `state_dict` to a model on the meta device, and set it to evaluation mode.

    Without `dtype` the tensors are used as they are, so that they stay memory-mapped. With it they are copied. What
    the model keeps in float32 is float32 either way. For errors see [`check_weights`].
    """
    check_weights(component, model, state_dict)
    kept = set(model._keep_in_fp32_modules or [])
    filled = {}
    for name, tensor in state_dict.items():
        target = torch.float32 if kept & set(name.split(".")) else dtype or tensor.dtype
        # A single tensor that is not copied would keep the whole file mapped.
        filled[name] = tensor.to(target, copy=dtype is not None)
    model.load_state_dict(filled, assign=True)
    return model.eval()


def _transformer_class(state_dict: Mapping[str, torch.Tensor]) -> type[torch.nn.Module]:
    return AudioXMMTransformer2DModel if is_mmdit(state_dict) else AudioXTransformer2DModel


def transformer_config(
    transformer_class: type[torch.nn.Module], config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Return the config of a released transformer. `ValueError` if it is not a `transformer_class`."""
    state_dict = remove_prefix(state_dict)
    actual = _transformer_class(state_dict)
    if actual is not transformer_class:
        raise ValueError(f"the checkpoint contains an {actual.__name__}, not an {transformer_class.__name__}")
    return component_configs(config, state_dict)["transformer"]


def load_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    text_encoder: Any,
    max_length: int,
    **hub_kwargs: Any,
) -> PreTrainedTokenizerBase | None:
    """
    Load a tokenizer that pads to `max_length`.

    By default it is the one beside the text encoder, or that of `google-t5/t5-base`. If neither can be loaded, warn
    and return `None`.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = max_length
        return tokenizer
    if tokenizer is not None:
        try:
            return _read_tokenizer(tokenizer, max_length, **hub_kwargs)
        except (OSError, ValueError) as error:
            raise ValueError(f"`tokenizer`: {tokenizer} could not be loaded ({first_line(error)})") from None
    sources = [text_encoder] if isinstance(text_encoder, (str, Path)) else []
    for source in [*sources, DEFAULT_TEXT_ENCODER]:
        try:
            return _read_tokenizer(source, max_length, **hub_kwargs)
        except (OSError, ValueError):
            continue
    logger.warning("No tokenizer was found. Give one as `tokenizer`, or call the pipeline with `prompt_embeds`.")
    return None


def _read_tokenizer(source: str | Path, max_length: int, **hub_kwargs: Any) -> PreTrainedTokenizerBase:
    # From a folder with only the config of T5, transformers makes a tokenizer without a vocabulary.
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _TOKENIZER_FILES):
        raise FileNotFoundError(f"none of {', '.join(_TOKENIZER_FILES)} in this folder")
    return AutoTokenizer.from_pretrained(source, model_max_length=max_length, trust_remote_code=False, **hub_kwargs)


def read_image_encoder_config(config: CLIPVisionConfig | Mapping | str | Path, **hub_kwargs: Any) -> CLIPVisionConfig:
    """Read the config of CLIP's vision tower: a dict, a file, a folder or a Hub id."""
    if isinstance(config, CLIPVisionConfig):
        return config
    if isinstance(config, Mapping):
        return CLIPVisionConfig(**config)
    try:
        return CLIPVisionConfig.from_pretrained(config, **hub_kwargs)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"`image_encoder_config`: {config} could not be loaded ({first_line(error)})"
        ) from None


def load_text_encoder(
    text_encoder: T5EncoderModel | str | Path | None,
    condition_dim: int,
    dtype: torch.dtype | None,
    **hub_kwargs: Any,
) -> T5EncoderModel:
    """Load T5 from a folder or Hub id, `google-t5/t5-base` by default, and check that it is `condition_dim` wide."""
    if not isinstance(text_encoder, T5EncoderModel):
        source = DEFAULT_TEXT_ENCODER if text_encoder is None else text_encoder
        try:
            text_encoder, info = T5EncoderModel.from_pretrained(
                source, dtype=dtype or torch.float32, output_loading_info=True, **hub_kwargs
            )
            check_encoder_keys(f"T5EncoderModel in {source}", info)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise FileNotFoundError(f"`text_encoder`: {source} could not be loaded ({first_line(error)})") from None
    if text_encoder.config.d_model != condition_dim:
        raise ValueError(
            f"`text_encoder` is {text_encoder.config.d_model} wide, the checkpoint needs {condition_dim}."
        )
    return text_encoder


def load_vae(
    config: dict, state_dict: Mapping[str, torch.Tensor], vae: Path | None, dtype: torch.dtype | None
) -> AudioXAutoencoderOobleck:
    """Build the VAE from the tensors of the checkpoint, or from the file `vae` if it has none."""
    if not state_dict:
        if vae is None:
            raise FileNotFoundError("`vae`: the checkpoint does not contain the VAE; give the path of vae.ckpt")
        state_dict = convert_vae_state_dict(read_state_dict(vae))
        if not state_dict:
            raise ValueError(f"`vae`: {vae} does not contain an Oobleck VAE")
    with torch.device("meta"):
        model = AudioXAutoencoderOobleck(**config)
    return fill_component("vae", model, fold_weight_norm(state_dict), dtype)


def load_sync_encoder(synchformer: Path | None, dtype: torch.dtype | None) -> SynchformerVisionModel:
    """Build Synchformer's visual tower from its file. Its heads are 64 wide."""
    if synchformer is None:
        raise FileNotFoundError("`synchformer`: the checkpoint needs it; give the path of synchformer_state_dict.pth")
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
    files: OriginalFiles,
    others: OtherParts,
    dtype: torch.dtype | dict[str, torch.dtype] | None = None,
    **hub_kwargs: Any,
) -> tuple[dict[str, Any], str]:
    """
    Load the networks and the tokenizer of a released checkpoint.

    Args:
        files: Files of the release.
        others: What goes with them. `vae` and `synchformer` override the files of the release.
        dtype: See [`fill_component`]. A dict has one for some components, and `"default"` for the others.
        hub_kwargs: `token`, `cache_dir`, `local_files_only`.

    Returns:
        The components, and the objective that the transformer was trained for: `"v"` or `"rectified_flow"`.
    """
    dtypes = dtype if isinstance(dtype, dict) else {"default": dtype}
    for value in dtypes.values():
        if value is not None and not value.is_floating_point:
            raise ValueError(f"`dtype` must be a floating-point type, got {value}.")

    def dtype_of(component: str) -> torch.dtype | None:
        return dtypes.get(component, dtypes.get("default"))

    state_dict = remove_prefix(read_state_dict(files.checkpoint))
    vae_file = files.vae if others.vae is None else Path(others.vae)
    config = files.config
    if files.published:
        vae = vae_of(state_dict) if others.vae is None else {}
        if not vae and vae_file is not None:
            vae = find_vae(read_state_dict(vae_file))
        config = fit_config(config, state_dict, vae)
    configs, objective = component_configs(config, state_dict), read_objective(config)
    transformer_class = _transformer_class(state_dict)
    del state_dict

    # Each component maps the file again, so that memory is freed after its tensors are cast.
    def tensors(component: str) -> dict[str, torch.Tensor]:
        return convert_state_dict(read_state_dict(files.checkpoint))[component]

    with torch.device("meta"):
        transformer = transformer_class(**configs["transformer"])
        conditioner = AudioXConditioner(**configs["conditioner"])
    clip = tensors("image_encoder")
    clip_config = others.image_encoder_config or image_encoder_config(clip)
    # CLIP has buffers that are not in the checkpoint.
    with init_empty_weights(include_buffers=False):
        image_encoder = CLIPVisionModelWithProjection(read_image_encoder_config(clip_config, **hub_kwargs))

    sync_encoder = others.synchformer
    if conditioner.config.num_sync_tokens is None:
        if sync_encoder is not None:
            raise ValueError("`synchformer`: the checkpoint does not use it")
    elif not isinstance(sync_encoder, SynchformerVisionModel):
        sync_encoder = load_sync_encoder(
            files.synchformer if sync_encoder is None else Path(sync_encoder), dtype_of("sync_encoder")
        )
    # The VAE inside a checkpoint is the one that its transformer was trained with.
    vae_tensors = {} if others.vae is not None else tensors("vae")
    components = {
        "transformer": fill_component("transformer", transformer, tensors("transformer"), dtype_of("transformer")),
        "conditioner": fill_component("conditioner", conditioner, tensors("conditioner"), dtype_of("conditioner")),
        "vae": load_vae(configs["vae"], vae_tensors, vae_file, dtype_of("vae")),
        "image_encoder": fill_component("image_encoder", image_encoder, clip, dtype_of("image_encoder")),
        "sync_encoder": sync_encoder,
        "text_encoder": load_text_encoder(
            others.text_encoder, configs["conditioner"]["condition_dim"], dtype_of("text_encoder"), **hub_kwargs
        ),
        "tokenizer": load_tokenizer(
            others.tokenizer, others.text_encoder, configs["conditioner"]["num_text_tokens"], **hub_kwargs
        ),
    }
    return components, objective
