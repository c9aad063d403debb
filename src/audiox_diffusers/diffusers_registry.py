"""
Make diffusers know the classes of this package. Nothing else here touches the internals of diffusers.

Nothing is imported before it is needed: diffusers gets the names now and the classes when it asks for them.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from ._imports import when_imported

_PACKAGE = __name__.split(".")[0]
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "revision", "token")

PIPELINE_FILE = '''\
"""Lets diffusers load this folder without importing the package first:

DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
"""

from audiox_diffusers import {class_name}  # noqa: F401
'''


def register_classes(names: Iterable[str], get: Callable[[str], Any]) -> None:
    """
    Make classes attributes of `diffusers`, where `from_pretrained` looks for what a `model_index.json` names.

    `["diffusers", "AudioXTransformer2DModel"]` then loads from folders and from the Hub without `trust_remote_code`.

    Args:
        names (`Iterable[str]`): Names of the classes.
        get (`Callable`): Returns the class of a name.
    """
    names = frozenset(names)

    def extend(diffusers: ModuleType) -> None:
        class Extended(type(diffusers)):
            def __getattr__(self, name: str) -> Any:
                return get(name) if name in names else super().__getattr__(name)

        diffusers.__class__ = Extended

    when_imported("diffusers", extend)


def register_cached_block(block_class: type) -> None:
    """Tell diffusers' caching hooks that a transformer block takes and returns only the hidden states."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    metadata._cls = block_class
    # `TransformerBlockRegistry.register` would first import every transformer of diffusers.
    TransformerBlockRegistry._registry[block_class] = metadata


def register_single_file(model_class: type, convert: Callable[..., dict], read_config: Callable[..., dict]) -> None:
    """
    Let `model_class.from_single_file(checkpoint, original_config=...)` read released checkpoints.

    Args:
        model_class (`type`): A model with `FromOriginalModelMixin`.
        convert (`Callable`): `(checkpoint, config) -> state dict` of the model from the state dict of the release.
        read_config (`Callable`): `(original_config, checkpoint) -> config` of the model.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    SINGLE_FILE_LOADABLE_CLASSES[model_class.__name__] = {
        "checkpoint_mapping_fn": lambda checkpoint, config: convert(checkpoint, config),
        "config_mapping_fn": lambda original_config, checkpoint: read_config(original_config, checkpoint),
    }


def register_model_names(is_known: Callable[[str], bool], find: Callable[..., str]) -> None:
    """
    Let `DiffusionPipeline.from_pretrained` and `AutoPipelineForText2Audio.from_pretrained` load models by names.

    Args:
        is_known (`Callable`): Whether a name is one of these. All other names are left to diffusers.
        find (`Callable`): `(name, **hub_kwargs) -> folder` of the model.
    """

    def folder_of(name: Any, kwargs: dict[str, Any]) -> str | None:
        if not is_known(name):
            return None
        return find(name, **{key: kwargs[key] for key in _HUB_KWARGS if kwargs.get(key) is not None})

    def extend(owner: type) -> None:
        load_config, download = owner.load_config.__func__, getattr(owner, "download", None)

        @wraps(load_config)
        def load_named_config(cls, name, *args, **kwargs):
            return load_config(cls, folder_of(name, kwargs) or name, *args, **kwargs)

        owner.load_config = classmethod(load_named_config)
        if download is not None:

            @wraps(download.__func__)
            def download_named(cls, name, **kwargs):
                return folder_of(name, kwargs) or download.__func__(cls, name, **kwargs)

            owner.download = classmethod(download_named)

    when_imported("diffusers.pipelines.pipeline_utils", lambda module: extend(module.DiffusionPipeline))
    when_imported("diffusers.pipelines.auto_pipeline", lambda module: extend(module.AutoPipelineForText2Audio))


def register_text_to_audio(name: str, get: Callable[[], type]) -> None:
    """Let `AutoPipelineForText2Audio` create the pipeline that `get` returns."""

    def add(module: ModuleType) -> None:
        module.AUTO_TEXT2AUDIO_PIPELINES_MAPPING[name] = get()

    when_imported("diffusers.pipelines.auto_pipeline", add)


class RegisteredPipelineMixin:
    """
    For pipelines with components of this package: their `model_index.json` names `diffusers` as the library of each,
    and `pipeline.py` is saved beside it. Otherwise the folder could not be loaded from the Hub.
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
