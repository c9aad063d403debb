"""Reproduce the numbers of the released model from the converted checkpoint."""

import math

import pytest
import torch

from audiox_diffusers import AudioXDPMSolverSDEScheduler
from audiox_diffusers.pipelines.denoising import rescale_guidance


def use_stored_noise(monkeypatch, scheduler, step_noise):
    """Make steps use the noise of the golden run, and return a list that collects the denoised samples."""
    denoised = []
    step, denoise = scheduler.step, scheduler.denoise

    def stored_step(model_output, timestep, sample, generator=None, return_dict=True):
        noise = step_noise[len(denoised) % len(step_noise)]
        return step(model_output, timestep, sample, variance_noise=noise, return_dict=return_dict)

    def recorded(*args):
        denoised.append(denoise(*args))
        return denoised[-1]

    monkeypatch.setattr(scheduler, "step", stored_step)
    monkeypatch.setattr(scheduler, "denoise", recorded)
    return denoised


def set_scheduler(pipe, golden, run, **kwargs):
    steps, sigma_min, sigma_max, guidance = golden[f"sample.{run}.params"].tolist()
    pipe.scheduler = AudioXDPMSolverSDEScheduler(sigma_min=sigma_min, sigma_max=sigma_max, **kwargs)
    return {
        "condition_embeds": golden["cond.context"],
        "latents": golden[f"sample.{run}.noise0"],
        "num_inference_steps": int(steps),
        "guidance_scale": guidance,
    }


@torch.no_grad()
def test_text_tokens(pipe, golden, close):
    mask = golden["cond.text.attention_mask"]
    hidden = pipe.text_encoder(golden["cond.text.input_ids"], attention_mask=mask).last_hidden_state
    close(pipe.conditioner(text_embeds=hidden * mask[..., None]).text_tokens, golden["cond.text.tokens"])


@torch.no_grad()
def test_video_tokens(pipe, golden, close):
    frames = golden["cond.video.pixels_0_255"].to(torch.uint8)
    embeds = pipe.encode_video(frames)
    assert not embeds[1].any()
    close(pipe.conditioner(video_embeds=embeds).video_tokens, golden["cond.video.tokens"])


def audio_latents(pipe, golden):
    waveform = golden["cond.audio.waveform"]
    posterior = pipe.vae.encode(waveform).latent_dist
    latents = posterior.mean + posterior.std * golden["cond.audio.posterior_noise"]
    return latents * waveform.flatten(1).any(dim=1)[:, None, None]


@torch.no_grad()
def test_audio_tokens(pipe, golden, close):
    close(pipe.conditioner(audio_latents=audio_latents(pipe, golden)).audio_tokens, golden["cond.audio.tokens"])


@torch.no_grad()
def test_context(pipe, golden, close):
    context = pipe.conditioner(
        text_embeds=golden["cond.text.tokens"],
        video_embeds=pipe.encode_video(golden["cond.video.pixels_0_255"].to(torch.uint8)),
        audio_latents=audio_latents(pipe, golden),
        return_dict=False,
    )[0]
    close(context, golden["cond.context"])


@torch.no_grad()
def test_vae(pipe, golden, close):
    close(pipe.vae.encoder(golden["vae.waveform"]), golden["vae.encoder_out"])
    posterior = pipe.vae.encode(golden["vae.waveform"]).latent_dist
    close(posterior.mean, golden["vae.mean"])
    close(posterior.std, golden["vae.std"])
    close(pipe.vae.decode(golden["vae.latents"]).sample, golden["vae.decoded"])


@torch.no_grad()
def test_transformer_and_guidance(pipe, golden, close):
    context = golden["cond.context"]
    conditional = pipe.transformer(golden["dit.x"], golden["dit.t"], context, return_dict=False)[0]
    null = pipe.transformer(golden["dit.x"], golden["dit.t"], torch.zeros_like(context)).sample
    guided = null + 7 * (conditional - null)
    close(conditional, golden["dit.out"])
    close(null, golden["dit.out_null_context"])
    close(guided, golden["dit.out_cfg7"])
    close(rescale_guidance(guided, conditional, 0.75), golden["dit.out_cfg7_rescale0.75"])


@pytest.mark.parametrize("run", ["a", "b"])
def test_sampling_run(pipe, golden, close, monkeypatch, run):
    inputs = set_scheduler(pipe, golden, run)
    denoised = use_stored_noise(monkeypatch, pipe.scheduler, golden[f"sample.{run}.step_noise"])
    latents = pipe(**inputs, output_type="latent").audios
    close(pipe.scheduler.sigmas.float(), golden[f"sample.{run}.sigmas"])
    close(torch.stack(denoised), golden[f"sample.{run}.denoised"], 1e-3)
    close(latents, golden[f"sample.{run}.latents"], 1e-3)
    close(pipe(**inputs, output_type="pt").audios, golden[f"sample.{run}.audio"], 1e-3)


@pytest.mark.parametrize(
    ("run", "key", "order"), [("a", "latents_eta0", 3), ("b", "latents_eta0", 3), ("b", "latents_2m_eta0", 2)]
)
def test_deterministic_run(pipe, golden, close, run, key, order):
    inputs = set_scheduler(pipe, golden, run, eta=0.0, solver_order=order)
    close(pipe(**inputs, output_type="latent").audios, golden[f"sample.{run}.{key}"], 1e-3)


@torch.no_grad()
def test_heun_run(pipe, golden, close):
    """The scheduler's levels and `denoise` suffice for another solver, Heun's method."""
    inputs = set_scheduler(pipe, golden, "b")
    context, scheduler = inputs["condition_embeds"], pipe.scheduler
    scheduler.set_timesteps(inputs["num_inference_steps"])

    def slope(x, sigma):
        t = torch.full((2,), math.atan(sigma) * 2 / math.pi)
        conditional = pipe.transformer(x / math.sqrt(sigma**2 + 1), t, context).sample
        null = pipe.transformer(x / math.sqrt(sigma**2 + 1), t, torch.zeros_like(context)).sample
        velocity = null + inputs["guidance_scale"] * (conditional - null)
        return (x - scheduler.denoise(velocity, x, sigma)) / sigma

    levels = scheduler.sigmas.tolist()
    x = inputs["latents"] * scheduler.init_noise_sigma
    for sigma, next_sigma in zip(levels, levels[1:], strict=False):
        first = slope(x, sigma)
        predicted = x + first * (next_sigma - sigma)
        x = predicted if next_sigma == 0 else x + (first + slope(predicted, next_sigma)) / 2 * (next_sigma - sigma)
    close(x, golden["sample.b.latents_heun"], 1e-3)


@torch.no_grad()
def test_training_pair(pipe, golden, close):
    """Check `x_t = alpha x0 + sigma e`, the target `v = alpha e - sigma x0`, and the loss of the model."""
    angle = golden["train.t"][:, None, None] * math.pi / 2
    alpha, sigma = angle.cos(), angle.sin()
    x0, noise = golden["train.x0"], golden["train.noise"]
    close(alpha * x0 + sigma * noise, golden["train.noised"])
    close(alpha * noise - sigma * x0, golden["train.target_v"])
    velocity = pipe.transformer(golden["train.noised"], golden["train.t"], golden["cond.context"]).sample
    close((velocity - golden["train.target_v"]).pow(2).mean()[None], golden["train.loss"])
