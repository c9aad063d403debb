"""Check that transformers' encoders have all their weights."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..models.model_audiox import check_loaded_keys

# Parts of whole T5 and CLIP checkpoints that the encoders do not have.
_OTHER_PARTS = r"(decoder|lm_head|text_model|text_projection|visual_projection|logit_scale)\b|.*position_ids"
_HUB_OPTIONS = ("cache_dir", "token", "revision", "proxies", "variant", "use_safetensors")


def check_encoders(download: Callable[..., str], source: str, components: Mapping[str, Any], **kwargs: Any) -> None:
    """
    Check that the weights of a pipeline's transformers models are complete. diffusers only logs it if they are not.

    Args:
        download: `download` of the pipeline.
        source: Folder, Hub id or name that the components were loaded from.
        components: Components by name. Only transformers models are checked.
        kwargs: Arguments of `from_pretrained`.

    Raises:
        ValueError: If a checkpoint lacks weights, or has weights that the model lacks.
    """
    options = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
    folder = source if os.path.isdir(source) else download(source, local_files_only=True, **options)
    for name, model in components.items():
        if not isinstance(model, PreTrainedModel) or hasattr(model.config, "quantization_config"):
            continue
        for variant in dict.fromkeys((kwargs.get("variant"), None)):
            try:
                with _no_progress_bar():
                    # On the meta device, only the names of the weights are read.
                    _, info = type(model).from_pretrained(
                        os.path.join(folder, name),
                        variant=variant,
                        device_map="meta",
                        output_loading_info=True,
                        local_files_only=True,
                        trust_remote_code=False,
                    )
            except OSError:
                continue  # without a file of this variant
            check_encoder_keys(f"{type(model).__name__} in {os.path.join(source, name)}", info)
            break


def check_encoder_keys(model: str, info: Mapping[str, Any]) -> None:
    """Check transformers' loading info. Raises `ValueError`, see [`check_encoders`]."""
    unexpected = [key for key in info["unexpected_keys"] if not re.match(_OTHER_PARTS, key)]
    check_loaded_keys(model, info["missing_keys"], unexpected)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
