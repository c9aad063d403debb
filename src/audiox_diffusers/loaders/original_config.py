"""Read the sizes of the components from a released config and the shapes of its tensors."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .checkpoint_mapping import is_mmdit

# Types of the conditioners in the releases.
_CONDITIONERS = {
    "video_prompt": ("clip", "clip-with-sync-w-empty-feat"),
    "text_prompt": ("t5",),
    "audio_prompt": ("audio_autoencoder", "audio_autoencoder_v2", "mel_spec"),
}
# Width of a head in the transformer over video frames. It is in no tensor and the same in every release.
_TEMPORAL_HEAD_DIM = 64
# Length of the audio prompt, unless the number of its latents is another.
_PROMPT_SECONDS = 10


def component_configs(config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> dict[str, dict]:
    """
    Return the configs of `transformer`, `conditioner` and `vae`.

    Args:
        config: The released `config.json`.
        state_dict: Tensors by their released names, on any device including meta.

    Raises:
        ValueError: A setting or tensor is missing, settings contradict each other or the tensors, or the model is not
            AudioX.
    """

    def setting(*path: str | int, kind: type = int):
        value = config
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"`config` is not an AudioX config: {'.'.join(map(str, path))} is missing") from None
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 1)):
            wanted = "a whole number above 0" if kind is int else f"a {kind.__name__}"
            raise ValueError(f"`config`: {'.'.join(map(str, path))} must be {wanted}, got {value!r}")
        return value

    def shape(key: str) -> torch.Size:
        if key not in state_dict:
            raise ValueError(f"not an AudioX checkpoint, or of another release than `config`: {key} is missing")
        return state_dict[key].shape

    if config.get("model_type") != "diffusion_cond":
        raise ValueError(f"`config`: the model_type must be 'diffusion_cond', got {config.get('model_type')!r}")
    conditioners = {
        entry.get("id"): entry
        for entry in setting("model", "conditioning", "configs", kind=list)
        if isinstance(entry, dict)
    }
    for name, known in _CONDITIONERS.items():
        if (kind := conditioners.get(name, {}).get("type")) not in known:
            raise ValueError(f"`config`: {name} must be of type {' or '.join(known)}, got {kind!r}")
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
    for fault, agrees in {
        "downsampling_ratio is not the product of the strides": hop == math.prod(strides),
        "the decoder's strides are not the encoder's": setting(*decoder, "strides", kind=list) == strides,
        "the decoder's c_mults are not the encoder's": setting(*decoder, "c_mults", kind=list)
        == setting(*encoder, "c_mults", kind=list),
        "audio_channels are not the encoder's in_channels": config.get("audio_channels", audio_channels)
        == audio_channels,
        "sample_size is less than one latent frame": setting("sample_size") >= hop,
    }.items():
        if not agrees:
            raise ValueError(f"`config` contradicts itself: {fault}")
    return {
        "vae": {
            "encoder_hidden_size": setting(*encoder, "channels"),
            "downsampling_ratios": strides,
            "channel_multiples": setting(*encoder, "c_mults", kind=list),
            "decoder_channels": setting(*decoder, "channels"),
            "decoder_input_channels": setting(*decoder, "latent_dim"),
            "audio_channels": audio_channels,
            "sampling_rate": setting("sample_rate"),
        },
        "transformer": (_mmdit_config if is_mmdit(state_dict) else _dit_config)(setting, shape, hop),
        "conditioner": {
            "num_text_tokens": num_text_tokens,
            **_video_config(setting, shape, conditioners["video_prompt"]["type"], state_dict),
            **_audio_config(setting, shape, conditioners["audio_prompt"], state_dict, hop),
            **_fusion_config(setting),
        },
    }


def _dit_config(setting: Callable, shape: Callable, hop: int) -> dict:
    if setting("model", "diffusion", "type", kind=str) != "dit":
        raise ValueError("`config` does not fit the weights: their transformer is of type 'dit'")
    inner_dim = setting("model", "diffusion", "config", "embed_dim")
    num_heads = setting("model", "diffusion", "config", "num_heads")
    head_dim = inner_dim // num_heads
    # The number of heads is in no tensor, but the number of rotated dimensions is.
    if shape("model.model.transformer.rotary_pos_emb.inv_freq")[0] != max(head_dim // 2, 32) // 2:
        raise ValueError(f"`config` does not fit the weights: {num_heads} heads for a width of {inner_dim}")
    block = "model.model.transformer.layers.0."
    return {
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
    }


def _mmdit_config(setting: Callable, shape: Callable, hop: int) -> dict:
    if setting("model", "diffusion", "type", kind=str) != "mmdit":
        raise ValueError("`config` does not fit the weights: their transformer is of type 'mmdit'")
    num_positions, num_context_tokens = shape("model.model.transformer.proj_mm_seq_len.weight")
    if setting("sample_size") // hop != num_positions - 1:
        raise ValueError(
            f"`config` does not fit the weights: sample_size {setting('sample_size')} is"
            f" {setting('sample_size') // hop} latent frames, the weights need {num_positions - 1}"
        )
    inner_dim = setting("model", "diffusion", "config", "embed_dim")
    # The released code passes the head width as the number of heads.
    head_dim = setting("model", "diffusion", "config", "num_heads")
    return {
        "sample_size": num_positions - 1,
        "in_channels": setting("model", "io_channels"),
        "num_layers": setting("model", "diffusion", "config", "depth"),
        "num_attention_heads": inner_dim // head_dim,
        "attention_head_dim": head_dim,
        "cross_attention_input_dim": setting("model", "diffusion", "config", "cond_token_dim"),
        "num_context_tokens": num_context_tokens,
        "time_proj_dim": 2 * shape("model.model.timestep_features.weight")[0],
        "ff_inner_dim": shape("model.model.transformer.layers.0.ffn.w1.weight")[0],
    }


def _video_config(setting: Callable, shape: Callable, kind: str, state_dict: Mapping[str, torch.Tensor]) -> dict:
    video = "conditioner.conditioners.video_prompt."
    num_frames = shape(video + "Temp_pos_embedding")[1]
    temporal_qkv = shape(video + "Temp_transformer.layers.0.0.fn.to_qkv.weight")
    return {
        "condition_dim": setting("model", "conditioning", "cond_dim"),
        "num_video_frames": num_frames,
        "num_frame_tokens": shape(video + "proj.weight")[1] // num_frames,
        "num_video_tokens": shape(video + "proj.weight")[0],
        "num_temporal_layers": len([key for key in state_dict if key.endswith(".0.fn.to_qkv.weight")]),
        "num_temporal_heads": temporal_qkv[0] // (3 * _TEMPORAL_HEAD_DIM),
        "video_fps": setting("video_fps"),
        "num_sync_tokens": None if kind == "clip" else shape(video + "proj_sync.weight")[1],
    }


def _audio_config(
    setting: Callable, shape: Callable, conditioner: dict, state_dict: Mapping[str, torch.Tensor], hop: int
) -> dict:
    audio = "conditioner.conditioners.audio_prompt."
    samples = _PROMPT_SECONDS * setting("sample_rate")
    if conditioner["type"] == "mel_spec":
        mel = conditioner.get("config", {})
        if mel.get("win_length", mel.get("n_fft")) != mel.get("n_fft"):
            raise ValueError("`config`: the win_length of audio_prompt must be its n_fft")
        return {
            "audio_type": "mel_spec",
            "num_mels": shape(audio + "proj_features.weight")[1],
            "mel_n_fft": mel.get("n_fft", 1024),
            "mel_hop_length": mel.get("hop_length", 256),
            "mel_sampling_rate": mel.get("target_sample_rate", 24000),
            "audio_prompt_samples": samples,
        }
    # AudioX-Turbo uses the second version under the name of the first.
    if audio + "proj_features_128.weight" in state_dict:
        num_tokens, num_latents = shape(audio + "proj_features_128.weight")
        config = {"audio_type": "audio_autoencoder_v2", "num_audio_tokens": num_tokens}
    else:
        num_latents = shape(audio + "empty_audio_feat")[1]
        config = {"audio_type": "audio_autoencoder"}
    return config | {
        "latent_channels": shape(audio + "proj_out.weight")[1],
        "num_audio_latents": num_latents,
        "audio_prompt_samples": samples if samples // hop == num_latents else num_latents * hop,
    }


def _fusion_config(setting: Callable) -> dict:
    if not setting("model", "diffusion", kind=dict).get("gate", False):
        return {}
    fusion = ("model", "diffusion", "gate_type_config")
    return {
        "num_fusion_experts": setting(*fusion, "num_experts_per_modality"),
        "num_fusion_heads": setting(*fusion, "num_heads"),
        "num_fusion_layers": setting(*fusion, "num_fusion_layers"),
    }


def fit_config(
    config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], vae: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """
    Return a published config with the sizes of the tensors, which may be of a smaller or larger model.

    Head counts are not in the tensors. Those of the DiT are 64 wide; the others are kept if they divide the width.

    Args:
        config: The published config.
        state_dict: Tensors by their released names.
        vae: Tensors of the VAE, from `encoder.` and `decoder.` on. Without them its config is kept.
    """
    config = copy.deepcopy(dict(config))
    model = config["model"]
    if vae:
        encoder, decoder = (model["pretransform"]["config"][half]["config"] for half in ("encoder", "decoder"))
        channels, audio_channels, _ = vae["encoder.layers.0.weight_v"].shape
        blocks = []
        while (key := f"encoder.layers.{len(blocks) + 1}.layers.4.weight_v") in vae:
            blocks.append(vae[key].shape)
        strides = [kernel // 2 for *_, kernel in blocks]
        latent_dim = vae["decoder.layers.0.weight_v"].shape[1]
        sizes = {"channels": channels, "c_mults": [width // channels for width, *_ in blocks], "strides": strides}
        encoder |= sizes | {"in_channels": audio_channels, "latent_dim": 2 * latent_dim}
        decoder |= sizes | {"out_channels": audio_channels, "latent_dim": latent_dim}
        model["pretransform"]["config"]["downsampling_ratio"] = math.prod(strides)
        config["audio_channels"] = audio_channels
    hop = model["pretransform"]["config"]["downsampling_ratio"]

    width, channels = state_dict["model.model.transformer.project_in.weight"].shape
    diffusion, conditioning = model["diffusion"], model["conditioning"]
    sizes = diffusion["config"]
    condition_dim = state_dict["conditioner.conditioners.video_prompt.Temp_pos_embedding"].shape[2]
    layers = {key.split(".")[4] for key in state_dict if key.startswith("model.model.transformer.layers.")}
    model["io_channels"] = sizes["io_channels"] = channels
    sizes |= {"embed_dim": width, "depth": len(layers), "cond_token_dim": condition_dim}
    conditioning["cond_dim"] = condition_dim
    if is_mmdit(state_dict):
        positions, num_tokens = state_dict["model.model.transformer.proj_mm_seq_len.weight"].shape
        others = ("video_prompt.proj.weight", "audio_prompt.proj_features_128.weight")
        others = [state_dict.get(f"conditioner.conditioners.{name}") for name in others]
        if config["sample_size"] // hop != positions - 1:
            config["sample_size"] = (positions - 1) * hop
        sizes["num_heads"] = math.gcd(sizes["num_heads"], width)
        text = next(entry for entry in conditioning["configs"] if entry["id"] == "text_prompt")
        text["config"]["max_length"] = num_tokens - sum(len(tensor) for tensor in others if tensor is not None)
    else:
        sizes["num_heads"] = max(1, width // 64)
    if "maf_block.unified_experts" in state_dict and (fusion := diffusion.get("gate_type_config")) is not None:
        fusion["num_experts_per_modality"] = len(state_dict["maf_block.unified_experts"]) // 3
        fusion["num_heads"] = math.gcd(fusion["num_heads"], condition_dim)
        fusion["num_fusion_layers"] = len([key for key in state_dict if key.endswith("self_attn.in_proj_weight")])
    return config


def image_encoder_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the config of CLIP's vision tower, `CLIPVisionConfig`, from its tensors. Its heads are 64 wide."""
    prefix = "vision_model.embeddings."
    names = (f"{prefix}patch_embedding.weight", f"{prefix}position_embedding.weight", "visual_projection.weight")
    if missing := [name for name in names if name not in state_dict]:
        raise ValueError(f"not an AudioX checkpoint: {', '.join(missing)} of the image encoder is missing")
    patches, positions, projection = (state_dict[name] for name in names)
    hidden_size, channels, patch_size, _ = patches.shape
    hidden = [tensor for name, tensor in state_dict.items() if name.endswith("mlp.fc1.weight")]
    return {
        "hidden_size": hidden_size,
        "intermediate_size": hidden[0].shape[0],
        "num_hidden_layers": len(hidden),
        "num_attention_heads": max(1, hidden_size // 64),
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": patch_size * math.isqrt(len(positions) - 1),
        "projection_dim": len(projection),
    }


def read_objective(config: Mapping[str, Any]) -> str:
    """Return the training objective of the transformer: `"v"` or `"rectified_flow"`."""
    objective = config["model"]["diffusion"].get("diffusion_objective", "v")
    if objective not in ("v", "rectified_flow"):
        raise ValueError(f"`config`: the diffusion_objective must be 'v' or 'rectified_flow', got {objective!r}")
    return objective
