"""Write a pipeline as a released AudioX checkpoint, which the original code and other tools read."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..models import AudioXMMTransformer2DModel
from ..schedulers import AudioXFlowMatchScheduler
from .checkpoint_mapping import find_vae, restore_state_dict, restore_synchformer_state_dict, vae_of
from .original_config import component_configs, fit_config
from .original_files import locate, read_state_dict
from .original_names import VAE
from .releases import TURBO, Layout, published_config

SUFFIXES = (".ckpt", ".safetensors")
_TURBO_KINDS = {"audiox-turbo": "student", "audiox-base": "teacher"}


def release_of(pipe: Any) -> str:
    """Return the name of the release whose networks and sampler a pipeline has."""
    if isinstance(pipe.transformer, AudioXMMTransformer2DModel):
        if not isinstance(pipe.scheduler, AudioXFlowMatchScheduler):
            return "audiox-maf-mmdit"
        return "audiox-turbo" if pipe.scheduler.config.stochastic_sampling else "audiox-base"
    return "audiox" if pipe.conditioner.config.num_fusion_experts is None else "audiox-maf"


def published_layout(name: str, synchformer: bool) -> Layout:
    """Return the files of a release as they are published, with the config of the model."""
    if name in _TURBO_KINDS:
        return Layout(
            f"{TURBO[_TURBO_KINDS[name]]}.ckpt",
            config="config.json",
            vae="pretransform/vae.ckpt",
            synchformer="synchformer/synchformer_state_dict.pth",
        )
    return file_layout("model.ckpt", synchformer)


def file_layout(name: str, synchformer: bool) -> Layout:
    """Return the files of a checkpoint in a folder of its own, in the format of its suffix."""
    suffix = ".safetensors" if Path(name).suffix == ".safetensors" else ".pth"
    return Layout(name, config="config.json", synchformer=f"synchformer_state_dict{suffix}" if synchformer else None)


def export_original(pipe: Any, folder: Path, layout: Layout, like: str | Path | None = None) -> None:
    """
    Write a pipeline as a released checkpoint.

    Args:
        pipe: An `AudioXPipeline` without LoRA layers.
        folder: Folder to write the files of `layout` to.
        layout: The files. The checkpoint always contains the VAE.
        like: A released checkpoint of the same kind: a file, a folder or a Hub id. It gives the tensors that nothing
            uses, which are zeros otherwise, the weight norm of unchanged VAE weights, and the dtypes.

    Raises:
        ValueError: The pipeline has networks that no release has, or `like` is of another kind.
    """
    name = release_of(pipe)
    like_state_dict, like_synchformer = _read_like(like, name)
    state_dict = restore_state_dict(
        {key: getattr(pipe, key).state_dict() for key in ("transformer", "conditioner", "image_encoder", "vae")},
        getattr(pipe.transformer, "rotary_dim", None),
        like_state_dict,
    )
    config = original_config(pipe, state_dict)
    _save({"state_dict": state_dict}, folder / layout.checkpoint)
    (folder / layout.config).write_text(json.dumps(config, indent=1), encoding="utf-8")
    if layout.vae is not None:
        _save({"state_dict": vae_of(state_dict)}, folder / layout.vae)
    if layout.synchformer is not None:
        _save(
            restore_synchformer_state_dict(pipe.sync_encoder.state_dict(), like_synchformer),
            folder / layout.synchformer,
        )


def original_config(pipe: Any, state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """
    Return the released config of a pipeline.

    Args:
        pipe: An `AudioXPipeline`.
        state_dict: Its tensors by their released names.

    Raises:
        ValueError: No released config describes the networks of the pipeline.
    """
    transformer, conditioner, vae = pipe.transformer.config, pipe.conditioner.config, pipe.vae.config
    name = release_of(pipe)
    config = fit_config(published_config(name), state_dict, vae_of(state_dict))
    model, hop = config["model"], config["model"]["pretransform"]["config"]["downsampling_ratio"]
    config["sample_rate"], config["video_fps"] = vae.sampling_rate, int(conditioner.video_fps)
    if config["sample_size"] // hop != transformer.sample_size:
        config["sample_size"] = transformer.sample_size * hop
    mmdit = isinstance(pipe.transformer, AudioXMMTransformer2DModel)
    sizes = model["diffusion"]["config"]
    sizes["num_heads"] = transformer.attention_head_dim if mmdit else transformer.num_attention_heads
    sizes["global_cond_dim"] = state_dict["model.model.to_global_embed.0.weight"].shape[1]
    if conditioner.num_fusion_experts is not None:
        model["diffusion"]["gate_type_config"]["num_heads"] = conditioner.num_fusion_heads
    entries = {entry["id"]: entry["config"] for entry in model["conditioning"]["configs"]}
    entries["text_prompt"]["max_length"] = conditioner.num_text_tokens
    audio = entries["audio_prompt"]
    if conditioner.audio_type == "mel_spec":
        audio |= {
            "n_fft": conditioner.mel_n_fft,
            "win_length": conditioner.mel_n_fft,
            "hop_length": conditioner.mel_hop_length,
            "n_mel_channels": conditioner.num_mels,
            "target_sample_rate": conditioner.mel_sampling_rate,
        }
    else:
        audio |= {"sample_rate": vae.sampling_rate, "pretransform_config": copy.deepcopy(model["pretransform"])}
        if "latent_seq_len" in audio:
            audio["latent_seq_len"] = conditioner.num_audio_latents

    for key, expected in component_configs(config, state_dict).items():
        actual = getattr(pipe, key).config
        if wrong := [setting for setting, value in expected.items() if actual[setting] != value]:
            raise ValueError(
                f"no release has such a {key}: {', '.join(f'{each} is {actual[each]!r}' for each in wrong)}, where"
                f" {name} has {', '.join(repr(expected[each]) for each in wrong)}"
            )
    return config


def _read_like(like: str | Path | None, name: str) -> tuple[dict[str, torch.Tensor] | None, dict[str, torch.Tensor]]:
    """Return the tensors of a released checkpoint, with the VAE, and those of its Synchformer."""
    if like is None:
        return None, {}
    folder, layout = locate(like, _TURBO_KINDS.get(name))
    state_dict = read_state_dict(folder / layout.checkpoint)
    if layout.vae is not None and not any(VAE in key for key in state_dict):
        state_dict |= {VAE + key: tensor for key, tensor in find_vae(read_state_dict(folder / layout.vae)).items()}
    return state_dict, {} if layout.synchformer is None else read_state_dict(folder / layout.synchformer)


def _save(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".safetensors":
        torch.save(content, path)
        return
    # Files of this format hold no tensor twice, but the VAE of AudioX is one.
    seen: set[int] = set()
    tensors = {}
    for key, tensor in content.get("state_dict", content).items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        tensors[key] = tensor.clone() if shared else tensor.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
