"""Small AudioX releases in the layouts that are published, with random weights of the small fixtures."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
RELEASES = ("audiox", "audiox-maf", "audiox-maf-mmdit", "audiox-turbo", "audiox-base")
REPOSITORIES = {
    "audiox": "HKUSTAudio/AudioX",
    "audiox-maf": "HKUSTAudio/AudioX-MAF",
    "audiox-maf-mmdit": "HKUSTAudio/AudioX-MAF-MMDiT",
    "audiox-turbo": "HKUSTAudio/AudioX-Turbo",
    "audiox-base": "HKUSTAudio/AudioX-Turbo",
}
AUDIO, VIDEO = "conditioner.conditioners.audio_prompt.", "conditioner.conditioners.video_prompt."
VAE = "pretransform.model."
CONTEXT_TOKENS = 6 + 10 + 128  # video, text and audio of the multi-modal releases


def small_release(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return the config and the tensors of a small release, with the VAE inside."""
    small = torch.load(FIXTURES / "audiox" / "model.ckpt", weights_only=True)["state_dict"]
    config = json.loads((FIXTURES / "audiox" / "config.json").read_text())
    if name == "audiox":
        return config, small
    video, _, audio = config["model"]["conditioning"]["configs"]
    diffusion = config["model"]["diffusion"]
    video["type"] = "clip-with-sync-w-empty-feat"
    diffusion |= {
        "gate": True,
        "gate_type_config": {"num_experts_per_modality": 4, "num_heads": 4, "num_fusion_layers": 2},
    }
    diffusion["config"]["global_cond_dim"] = 64
    maf = load_file(FIXTURES / "maf" / "state_dict.safetensors")
    state_dict = {key: value for key, value in small.items() if not key.startswith((AUDIO, VIDEO))} | maf
    state_dict["model.model.to_global_embed.0.weight"] = small["model.model.to_global_embed.0.weight"][:, :64]
    if name == "audiox-maf":
        audio["type"] = "mel_spec"
        audio["config"] |= {"n_fft": 1024, "hop_length": 256, "win_length": 1024, "target_sample_rate": 24000}
        return config, _contiguous(state_dict)

    generator = torch.Generator().manual_seed(1 if name == "audiox-base" else 0)
    state_dict = {key: value for key, value in state_dict.items() if not key.startswith(("model.", AUDIO))}
    state_dict |= load_file(FIXTURES / "mmdit" / "state_dict.safetensors")
    positions = "model.model.transformer.proj_mm_seq_len.weight"
    state_dict[positions] = torch.randn(25, CONTEXT_TOKENS, generator=generator) / 12
    state_dict[AUDIO + "proj_features_128.weight"] = torch.randn(128, 20, generator=generator) / 4
    state_dict[AUDIO + "proj_features_128.bias"] = torch.randn(128, generator=generator)
    state_dict[AUDIO + "proj_out.weight"] = torch.randn(64, 8, generator=generator) / 3
    state_dict[AUDIO + "proj_out.bias"] = torch.randn(64, generator=generator)
    state_dict |= {AUDIO + key: value for key, value in state_dict.items() if key.startswith(VAE)}
    diffusion["type"] = "mmdit"
    diffusion["config"] |= {"embed_dim": 64, "num_heads": 2}
    audio["type"] = "audio_autoencoder_v2"
    if name != "audiox-maf-mmdit":
        audio["type"] = "audio_autoencoder"
        diffusion["diffusion_objective"] = "rectified_flow"
    return config, _contiguous(state_dict)


def small_synchformer() -> dict[str, torch.Tensor]:
    """Return a small Synchformer, with one tensor of its audio tower."""
    state_dict = load_file(FIXTURES / "synchformer" / "state_dict.safetensors")
    return state_dict | {"afeat_extractor.norm.weight": torch.ones(4)}


def write_published(name: str, folder: Path) -> dict:
    """Write a small release as it is published, and return its config."""
    config, state_dict = small_release(name)
    folder.mkdir(parents=True, exist_ok=True)
    if name in ("audiox", "audiox-maf", "audiox-maf-mmdit"):
        save(state_dict, folder / "model.ckpt")
        (folder / "config.json").write_text(json.dumps(config))
        if name != "audiox":
            save(small_synchformer(), folder / "synchformer_state_dict.pth", wrapped=False)
        return config
    vae = {"autoencoder." + key.removeprefix(VAE): value for key, value in state_dict.items() if key.startswith(VAE)}
    student = {key: value for key, value in state_dict.items() if VAE not in key}
    _, teacher = small_release("audiox-base")
    for kind, tensors in (("audiox_turbo", student), ("pretrained_ckpt", teacher)):
        save(tensors, folder / kind / f"{kind}.ckpt")
    save(vae, folder / "pretransform" / "vae.ckpt")
    save(small_synchformer(), folder / "synchformer" / "synchformer_state_dict.pth", wrapped=False)
    (folder / "config.json").write_text(json.dumps({"name": "AudioX-Turbo"}))
    return config


def save(state_dict: dict[str, torch.Tensor], path: Path, wrapped: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state_dict} if wrapped else state_dict, path)


def _contiguous(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in state_dict.items()}


def write_repositories(root: Path, tokenizer) -> dict[str, Path]:
    """Write the Hub repositories of all releases, and a small T5 as `google-t5/t5-base`; return their folders."""
    for name in ("audiox", "audiox-maf", "audiox-maf-mmdit", "audiox-turbo"):
        write_published(name, root / REPOSITORIES[name])
    text_encoder = root / "google-t5" / "t5-base"
    shutil.copytree(FIXTURES / "audiox" / "text_encoder", text_encoder)
    tokenizer.save_pretrained(text_encoder)
    return {repo_id: root / repo_id for repo_id in [*REPOSITORIES.values(), "google-t5/t5-base"]}
