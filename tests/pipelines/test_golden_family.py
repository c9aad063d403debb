"""Reproduce the numbers of the later releases: fusion, sync, mel, Synchformer, MMDiT, rectified flow."""

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from audiox_diffusers import (
    AudioXConditioner,
    AudioXFlowMatchScheduler,
    AudioXMMTransformer2DModel,
    AudioXPipeline,
    SynchformerVisionModel,
)
from audiox_diffusers.loaders import convert_state_dict, convert_synchformer_state_dict
from audiox_diffusers.models.conditioner_audiox import log_mel_spectrogram, mel_filters


@pytest.fixture(scope="module")
def maf(fixtures_path):
    """Return the small conditioner with fusion, its image encoder, and the numbers."""
    converted = convert_state_dict(load_file(fixtures_path / "maf" / "state_dict.safetensors"))
    conditioner = AudioXConditioner(
        condition_dim=64,
        num_text_tokens=10,
        num_video_frames=4,
        num_frame_tokens=5,
        num_video_tokens=6,
        num_temporal_layers=2,
        num_temporal_heads=2,
        num_sync_tokens=240,
        audio_type="mel_spec",
        num_mels=100,
        audio_prompt_samples=6000,
        num_fusion_experts=4,
        num_fusion_heads=4,
        num_fusion_layers=2,
    )
    conditioner.load_state_dict(converted["conditioner"])
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig.from_pretrained(fixtures_path / "maf" / "image_encoder")
    )
    image_encoder.load_state_dict(converted["image_encoder"])
    return conditioner.eval(), image_encoder.eval(), load_file(fixtures_path / "maf" / "golden.safetensors")


@pytest.fixture(scope="module")
def mmdit(fixtures_path):
    """Return the small multi-modal transformer, with 32 heads of width 2, and the numbers."""
    transformer = AudioXMMTransformer2DModel(
        sample_size=24,
        in_channels=8,
        num_layers=2,
        num_attention_heads=32,
        attention_head_dim=2,
        cross_attention_input_dim=64,
        num_context_tokens=384,
        ff_inner_dim=256,
    )
    transformer.load_state_dict(
        convert_state_dict(load_file(fixtures_path / "mmdit" / "state_dict.safetensors"))["transformer"]
    )
    return transformer.eval(), load_file(fixtures_path / "mmdit" / "golden.safetensors")


@pytest.fixture(scope="module")
def synchformer(fixtures_path):
    model = SynchformerVisionModel(image_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    state_dict = load_file(fixtures_path / "synchformer" / "state_dict.safetensors")
    model.load_state_dict(convert_synchformer_state_dict(state_dict))
    return model.eval(), load_file(fixtures_path / "synchformer" / "golden.safetensors")


@torch.no_grad()
def test_fusion(maf, close):
    """The block takes text in place of video and video in place of text, and returns them in that order."""
    conditioner, _, golden = maf
    tokens = [golden[f"maf.{name}_tokens"] for name in ("text", "video", "audio")]
    close(torch.cat(conditioner.fusion(*tokens), dim=1), golden["maf.context"])


@torch.no_grad()
def test_sync_and_mel_tokens(maf, pipe, close):
    conditioner, image_encoder, golden = maf
    pipe.image_encoder = image_encoder
    video_embeds = pipe.encode_video(golden["sync.pixels_0_255"].to(torch.uint8))
    output = conditioner(
        text_embeds=golden["maf.text_tokens"],
        video_embeds=video_embeds,
        sync_embeds=golden["sync.features"],
        audio_waveform=golden["mel.waveform"],
    )
    close(output.video_tokens, golden["sync.tokens"])
    close(output.audio_tokens, golden["mel.tokens"])
    close(log_mel_spectrogram(golden["mel.waveform"], mel_filters(100, 1024, 24000), 1024, 256), golden["mel.log_mel"])
    fused = conditioner.fusion(output.text_tokens, output.video_tokens, output.audio_tokens)
    assert torch.equal(output.condition_embeds, torch.cat(fused, dim=1))


@torch.no_grad()
def test_without_video_sync_is_zeros(maf):
    conditioner, _, golden = maf
    inputs = {"text_embeds": golden["maf.text_tokens"], "audio_waveform": golden["mel.waveform"]}
    video_embeds = torch.randn(2, 4, 5, 64, generator=torch.Generator().manual_seed(0))
    zeros = conditioner(**inputs, video_embeds=video_embeds, sync_embeds=torch.zeros(2, 240, 64))
    assert torch.equal(conditioner(**inputs, video_embeds=video_embeds).video_tokens, zeros.video_tokens)
    absent = conditioner(**inputs, video_embeds=0 * video_embeds, sync_embeds=golden["sync.features"])
    assert torch.equal(absent.video_tokens, conditioner(**inputs).video_tokens)


@torch.no_grad()
def test_without_audio_mel_is_that_of_silence(maf):
    conditioner, _, golden = maf
    silent = conditioner(text_embeds=golden["maf.text_tokens"], audio_waveform=torch.zeros(2, 2, 6000))
    torch.testing.assert_close(conditioner(text_embeds=golden["maf.text_tokens"]).audio_tokens, silent.audio_tokens)


@torch.no_grad()
def test_synchformer(synchformer, close):
    model, golden = synchformer
    segments = golden["sync.video_normalised"][0].unfold(0, 16, 8).movedim(-1, 1)
    assert segments.shape[0] == 4
    close(model(segments).last_hidden_state.flatten(0, 1)[None], golden["sync.features"])


@torch.no_grad()
def test_multi_modal_transformer(mmdit, close):
    transformer, golden = mmdit
    context = golden["mmdit.context"]
    conditional = transformer(golden["mmdit.x"], golden["mmdit.t"], context, return_dict=False)[0]
    null = transformer(golden["mmdit.x"], golden["mmdit.t"], torch.zeros_like(context)).sample
    close(conditional, golden["mmdit.out"])
    close(null + 7 * (conditional - null), golden["mmdit.out_cfg7"])


def test_wrong_lengths_are_named(mmdit):
    transformer, golden = mmdit
    with pytest.raises(ValueError, match="must have 24 latent frames, got 25"):
        transformer(torch.zeros(2, 8, 25), golden["mmdit.t"], golden["mmdit.context"])
    with pytest.raises(ValueError, match="must have 384 tokens, got 383"):
        transformer(golden["mmdit.x"], golden["mmdit.t"], golden["mmdit.context"][:, 1:])


@pytest.mark.parametrize(
    ("key", "stochastic", "steps", "guidance"),
    [("latents_4step", True, 4, 1.0), ("latents_euler20_cfg6", False, 20, 6.0)],
)
def test_rectified_flow_run(pipe, mmdit, close, monkeypatch, tmp_path, key, stochastic, steps, guidance):
    """Run the student in four steps and the teacher in twenty, with the defaults of a saved pipeline."""
    transformer, golden = mmdit
    components = {**pipe.components, "transformer": transformer}
    components["scheduler"] = AudioXFlowMatchScheduler(stochastic_sampling=stochastic)
    AudioXPipeline(**components, default_num_inference_steps=steps, default_guidance_scale=guidance).save_pretrained(
        tmp_path
    )
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    step, noise = loaded.scheduler.step, iter(golden["turbo.step_noise"])

    def stored_step(*args, generator=None, **kwargs):
        return step(*args, variance_noise=next(noise) if stochastic else None, **kwargs)

    monkeypatch.setattr(loaded.scheduler, "step", stored_step)
    latents = loaded(
        condition_embeds=golden["mmdit.context"], latents=golden["turbo.noise0"], output_type="latent"
    ).audios
    assert loaded.num_timesteps == steps
    close(latents, golden[f"turbo.{key}"], 1e-3)
