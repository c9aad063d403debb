"""Everything that makes diffusers know classes from outside itself. Nothing else here touches its internals."""

from collections.abc import Callable
from pathlib import Path

import diffusers
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

_PACKAGE = __name__.split(".")[0]

PIPELINE_FILE = '''\
"""Lets diffusers load this folder without importing the package first:

DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
"""

from audiox_diffusers import {class_name}  # noqa: F401
'''


def register_classes(*classes: type) -> None:
    """
    Make the classes attributes of `diffusers`, where `from_pretrained` looks for what a `model_index.json` names:
    `["diffusers", "AudioXTransformer2DModel"]` is loaded from folders and from the Hub, with no trust asked.
    """
    for registered_class in classes:
        setattr(diffusers, registered_class.__name__, registered_class)


def register_cached_block(block_class: type) -> None:
    """Tell diffusers' caching hooks that a transformer block takes and returns the hidden states alone."""
    TransformerBlockRegistry.register(
        block_class,
        TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
    )


def register_single_file(model_class: type, convert: Callable[..., dict], read_config: Callable[..., dict]) -> None:
    """
    Let `model_class.from_single_file(checkpoint, original_config=...)` read released checkpoints.

    Args:
        model_class: a model with `FromOriginalModelMixin`.
        convert: `(checkpoint) -> state dict` of the model from that of the release.
        read_config: `(original_config, checkpoint) -> config` of the model.
    """
    SINGLE_FILE_LOADABLE_CLASSES[model_class.__name__] = {
        "checkpoint_mapping_fn": lambda checkpoint, config: convert(checkpoint),
        "config_mapping_fn": lambda original_config, checkpoint: read_config(original_config, checkpoint),
    }


class RegisteredPipelineMixin:
    """
    For pipelines with components of this package: their `model_index.json` names `diffusers` as the library of each,
    and `pipeline.py` stands beside it. Without the former the folder could not be loaded from the Hub.
    """

    def register_to_config(self, **kwargs):
        for name, value in kwargs.items():
            if isinstance(value, tuple) and value[0] is not None and value[0].split(".")[0] == _PACKAGE:
                kwargs[name] = ("diffusers", value[1])
        super().register_to_config(**kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.py").write_text(PIPELINE_FILE.format(class_name=type(self).__name__))
        super().save_pretrained(save_directory, *args, **kwargs)
