"""Batches and the training model, for models of every kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_pipelines import KINDS, build_kind

from audiox_diffusers import AudioXConditioner
from audiox_diffusers.media import save_audio, save_video
from audiox_diffusers.testing import (
    HOP_LENGTH,
    NUM_FRAMES,
    SAMPLING_RATE,
    create_small_pipeline,
)
from audiox_diffusers.training.arguments import MaskingConfig
from audiox_diffusers.training.data.batches import Batch, BatchMaker, Sample
from audiox_diffusers.training.data.encoding import RecordEncoder
from audiox_diffusers.training.data.masking import TaskSpec
from audiox_diffusers.training.data.records import Choice, Record, RecordReader
from audiox_diffusers.training.data.streaming import RowKey
from audiox_diffusers.training.data.windows import Crop, WindowSpec
from audiox_diffusers.training.methods.model import AudioXTrainingModel

VIDEO_PROMPT = "a picture"
WINDOW = NUM_FRAMES * HOP_LENGTH
NO_MASKS = MaskingConfig(mask_text_rate=0.0, mask_video_rate=0.0)


@pytest.fixture(scope="module", params=KINDS)
def any_encoder(request) -> RecordEncoder:
    return RecordEncoder(build_kind(request.param), torch.device("cpu"), VIDEO_PROMPT)


@pytest.fixture(scope="module")
def encoder() -> RecordEncoder:
    return RecordEncoder(build_kind("audio_autoencoder"), torch.device("cpu"), VIDEO_PROMPT)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, str]:
    folder, generator = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for name in ("target", "before"):
        noise = 0.1 * generator.standard_normal(WINDOW).astype(np.float32)
        save_audio(folder / f"{name}.wav", noise, SAMPLING_RATE)
    frames = np.zeros((50, 32, 48, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, index // 2 : index // 2 + 12] = 250
    save_video(folder / "clip.mp4", frames, fps=25)
    Image.fromarray(generator.integers(0, 255, (40, 30, 3), np.uint8)).save(folder / "picture.png")
    return {path.name: str(path) for path in folder.iterdir()}


def read(encoder: RecordEncoder, media: dict[str, str], **chosen) -> list[Sample]:
    """Return a sample with this task spec, of a row that has every modality."""
    columns = {name: name for name in ("audio", "video", "image", "caption", "audio_prompt")}
    row = {
        "audio": media["target.wav"],
        "video": media["clip.mp4"],
        "image": media["picture.png"],
        "audio_prompt": media["before.wav"],
        "caption": ["a bell", "it rings", "far away"],
    }
    reader = RecordReader(WindowSpec.of(encoder.pipe), [columns], MaskingConfig(), "start", 1.0, 0)
    record = read_as(reader, row, task_spec(**chosen))
    (encoded,) = encoder.encode([record])
    return [Sample(record.key, record.task_spec, encoded, record)]


def read_as(reader: RecordReader, row: dict, spec: TaskSpec) -> Record:
    """Read a row with this task spec instead of a drawn one."""
    key = RowKey(0, 0, 0, 0)
    opened = reader.open(key, row)
    caption = int(spec.caption * len(opened.facts.captions)) if spec.text else None
    chosen = Choice(Crop(0, 0), frozenset(), spec, caption)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "choices", lambda *_: [chosen])
        return reader.read(key, row)


def task_spec(**chosen) -> TaskSpec:
    nothing = dict(task="text", text=False, caption=0.0, video=False, image=False, audio=None, audio_span=None)
    return TaskSpec(**{**nothing, "drop_context": False, **chosen})


PLANS = {
    "nothing": {},
    "text": {"text": True, "caption": 0.5},
    "video": {"video": True},
    "text and video": {"text": True, "video": True},
    "image": {"image": True},
    "inpainting": {"text": True, "audio": "target", "audio_span": (0.25, 0.6)},
    "completion": {"video": True, "audio": "previous"},
    "no context": {"text": True, "video": True, "drop_context": True},
}


@pytest.fixture(scope="module")
def samples(any_encoder, media) -> dict[str, Sample]:
    """A sample for each task spec, with different keys."""
    made = {}
    for number, (name, chosen) in enumerate(PLANS.items()):
        (sample,) = read(any_encoder, media, **chosen)
        made[name] = replace(sample, key=RowKey(0, 0, 0, number))
    return made


def maker(encoder: RecordEncoder, masking: MaskingConfig = NO_MASKS, seed: int = 0) -> BatchMaker:
    config = encoder.pipe.conditioner.config
    return BatchMaker(config, (HOP_LENGTH, NUM_FRAMES), encoder.null_embeddings(), masking, seed, torch.device("cpu"))


def row(batch: Batch, number: int) -> dict[str, torch.Tensor]:
    """Return all tensors of one item."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return {name: value[number] for name, value in {**tensors, **batch.embeds}.items()}


@torch.no_grad()
def predict(encoder: RecordEncoder, batch: Batch) -> torch.Tensor:
    timestep = torch.linspace(0.2, 0.9, len(batch.latents))
    return AudioXTrainingModel(encoder)(batch.noise, timestep, batch)


# What a batch holds


def test_shapes(any_encoder, samples):
    batch = maker(any_encoder).make(list(samples.values()))
    config = any_encoder.pipe.conditioner.config
    shapes = {
        "latents": (HOP_LENGTH, NUM_FRAMES),
        "noise": (HOP_LENGTH, NUM_FRAMES),
        "text_mask": (128,),
        "video_mask": (10, 17),
        "context_mask": (),
        "text_embeds": (128, 64),
        "video_embeds": (10, 17, 64),
    }
    if config.num_sync_tokens is not None:
        shapes["sync_embeds"] = (48, 64)
    if config.audio_type == "mel_spec":
        shapes["audio_waveform"] = (1, WINDOW)
    else:
        shapes["audio_latents"] = (HOP_LENGTH, NUM_FRAMES)
    assert {name: tuple(value.shape) for name, value in row(batch, 0).items()} == shapes
    assert all(value.dtype == torch.float32 for value in row(batch, 0).values())
    assert all(value.isfinite().all() for number in range(len(samples)) for value in row(batch, number).values())
    assert batch.samples == list(samples.values())


@torch.no_grad()
def test_the_context_equals_that_of_the_pipeline(any_encoder, samples, media):
    """Training and generation encode the same prompts to the same context."""
    pipe = any_encoder.pipe
    asked = {
        "text": {"prompt": "it rings"},
        "video": {"prompt": VIDEO_PROMPT, "video": media["clip.mp4"]},
        "text and video": {"prompt": "a bell", "video": media["clip.mp4"]},
        "image": {"prompt": VIDEO_PROMPT, "image": media["picture.png"]},
        "completion": {"prompt": VIDEO_PROMPT, "video": media["clip.mp4"], "audio": media["before.wav"]},
        "nothing": {"prompt": ""},
    }
    batch = maker(any_encoder).make([samples[name] for name in asked])
    contexts = pipe.conditioner(**batch.embeds).condition_embeds
    for context, options in zip(contexts, asked.values(), strict=True):
        (expected,) = pipe.encode_conditions(**options)
        # Frames have 8 bits, and the VAE's posterior has a standard deviation of 1e-4.
        assert (context - expected).abs().max() < 0.01 * expected.abs().max()
    spread = (contexts[:, None] - contexts[None]).abs().amax((2, 3)) + torch.eye(len(contexts))
    assert spread.min() > 0.05, "all of them differ"


def test_null_embeddings(any_encoder, samples):
    pipe = any_encoder.pipe
    batch = row(maker(any_encoder).make([samples["nothing"]]), 0)
    assert not batch["video_embeds"].any()
    assert "sync_embeds" not in batch or not batch["sync_embeds"].any()
    if pipe.conditioner.config.audio_type == "audio_autoencoder":
        assert not batch["audio_latents"].any()
    elif pipe.conditioner.config.audio_type == "audio_autoencoder_v2":
        with torch.no_grad():
            silence = pipe.vae.encode(torch.zeros(1, 1, WINDOW)).latent_dist.mode()[0]
        assert torch.equal(batch["audio_latents"], silence)
    else:
        assert not batch["audio_waveform"].any()


@torch.no_grad()
def test_learned_tokens_replace_absent_modalities(any_encoder, samples):
    pipe = any_encoder.pipe
    output = pipe.conditioner(**maker(any_encoder).make([samples["nothing"], samples["completion"]]).embeds)
    empty = pipe.conditioner.video_proj.empty_embedding[0]
    assert torch.equal(output.video_tokens[0], empty) and not torch.equal(output.video_tokens[1], empty)
    if pipe.conditioner.config.audio_type == "audio_autoencoder":
        empty = pipe.conditioner.audio_proj.empty_embedding[0]
        assert torch.equal(output.audio_tokens[0], empty) and not torch.equal(output.audio_tokens[1], empty)


def test_choice_of_the_text(encoder, media):
    texts = {name: encoder.texts([name])[0] for name in ("a bell", "it rings", "far away", VIDEO_PROMPT, "")}
    for chosen, text in (
        ({"text": True, "caption": 0.0}, "a bell"),
        ({"text": True, "caption": 0.34}, "it rings"),
        ({"text": True, "caption": 0.99}, "far away"),
        ({"text": True, "caption": 0.99, "video": True}, "far away"),
        ({"video": True}, VIDEO_PROMPT),
        ({"image": True}, VIDEO_PROMPT),
        ({"video": True, "audio": "target", "audio_span": (0.2, 0.5)}, VIDEO_PROMPT),
        ({"audio": "target", "audio_span": (0.2, 0.5)}, ""),
        ({"audio": "previous"}, ""),
        ({}, ""),
    ):
        embeds = maker(encoder).make(read(encoder, media, **chosen)).embeds["text_embeds"][0]
        torch.testing.assert_close(embeds, texts[text])
    assert not texts[""].isclose(texts[VIDEO_PROMPT]).all()


def test_video_or_image(any_encoder, samples):
    for name in ("video", "image"):
        batch = row(maker(any_encoder).make([samples[name]]), 0)
        encoded = samples[name].encoded
        assert torch.equal(batch["video_embeds"], getattr(encoded, f"{name}_embeds"))
        if "sync_embeds" in batch:
            assert torch.equal(batch["sync_embeds"], getattr(encoded, f"{name}_sync_embeds"))


def test_the_silenced_span_of_inpainting(any_encoder, samples):
    batch = row(maker(any_encoder).make([samples["inpainting"]]), 0)
    if any_encoder.reads_waveforms:
        prompt, whole, silence = batch["audio_waveform"], samples["inpainting"].record.waveform, torch.zeros(1, WINDOW)
    else:
        prompt, whole, silence = batch["audio_latents"], batch["latents"], any_encoder.null_embeddings().silence
    length = prompt.shape[1]
    span = slice(round(0.25 * length), round(0.6 * length))
    assert torch.equal(prompt[:, span], silence[:, span])
    for rest in (slice(0, span.start), slice(span.stop, None)):
        assert torch.equal(prompt[:, rest], whole[:, rest])
        assert not torch.equal(prompt[:, rest], silence[:, rest])


def test_completion_gets_the_previous_sound(any_encoder, samples):
    batch = row(maker(any_encoder).make([samples["completion"]]), 0)
    before = samples["completion"].record.prompt
    if any_encoder.reads_waveforms:
        assert torch.equal(batch["audio_waveform"], before)
    else:
        with torch.no_grad():
            posterior = any_encoder.pipe.vae.encode(before[None]).latent_dist
        noise = row(maker(any_encoder).make([unit_posterior(samples["completion"])]), 0)["audio_latents"]
        expected = posterior.mean[0] + posterior.std[0] * noise
        torch.testing.assert_close(batch["audio_latents"], expected)


def test_a_prompt_shorter_than_the_window(media):
    pipe = create_small_pipeline()
    config = {**pipe.conditioner.config, "num_audio_latents": 50, "audio_prompt_samples": 50 * HOP_LENGTH}
    pipe.conditioner = AudioXConditioner(**config)
    shorter = RecordEncoder(pipe, torch.device("cpu"), VIDEO_PROMPT)
    (sample,) = read(shorter, media, audio="target", audio_span=(0.2, 0.6))
    batch = row(maker(shorter).make([sample]), 0)
    assert batch["latents"].shape == (HOP_LENGTH, NUM_FRAMES) and batch["audio_latents"].shape == (
        HOP_LENGTH,
        50,
    )
    assert torch.equal(batch["audio_latents"][:, :10], batch["latents"][:, :10])
    assert torch.equal(batch["audio_latents"][:, 30:], batch["latents"][:, 30:50])
    (sample,) = read(shorter, media, audio="previous")
    assert maker(shorter).make([sample]).embeds["audio_latents"].shape == (1, HOP_LENGTH, 50)


# Draws


def unit_posterior(sample: Sample) -> Sample:
    """Give the sample standard normal posteriors, whose samples equal the drawn noise."""
    shown = {"latent_mean": 0, "previous_mean": 0, "latent_std": 1, "previous_std": 1}
    values = {name: torch.full_like(getattr(sample.encoded, name), value) for name, value in shown.items()}
    return replace(sample, encoded=replace(sample.encoded, **values))


def test_draws_are_standard_normal_and_independent(encoder, media):
    (sample,) = map(unit_posterior, read(encoder, media, audio="previous"))
    batch = row(maker(encoder).make([sample]), 0)
    draws = torch.stack([batch[name].flatten() for name in ("latents", "noise", "audio_latents")])
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.06
    assert (draws.std(1) - 1).abs().max() < 0.05 and draws.mean(1).abs().max() < 0.05
    inpainted = replace(sample, task_spec=task_spec(audio="target", audio_span=(0.0, 0.0)))
    batch = row(maker(encoder).make([inpainted]), 0)
    assert torch.equal(batch["audio_latents"], batch["latents"]), "the prompt must be the same draw as the target"


def test_draws_depend_on_the_key_and_the_seed_alone(encoder, media):
    masking = MaskingConfig(mask_text_rate=0.5, mask_video_rate=0.5)
    (sample,) = read(encoder, media, text=True, audio="previous")
    names = ("latents", "noise", "text_mask", "video_mask")

    def draws(sample: Sample, seed: int = 0) -> list[torch.Tensor]:
        torch.manual_seed(len(sample.task_spec.task))
        batch = row(maker(encoder, masking, seed).make([sample]), 0)
        return [batch[name] for name in names]

    first = draws(sample)
    for chosen in PLANS.values():
        again = draws(replace(sample, task_spec=task_spec(**{**chosen, "task": "completion"})))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    keys = [RowKey(*(int(place == other) for place in range(4))) for other in range(4)]
    others = [draws(replace(sample, key=key)) for key in keys] + [draws(sample, seed=1)]
    for number, other in enumerate(others):
        for one in [first, *others[:number]]:
            assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_item_is_the_same_alone_and_in_a_batch(any_encoder, samples):
    masking = MaskingConfig(mask_text_rate=0.3, mask_video_rate=0.3)
    batch = maker(any_encoder, masking).make(list(samples.values()))
    backwards = maker(any_encoder, masking).make(list(samples.values())[::-1])
    together = predict(any_encoder, batch)
    timesteps = torch.linspace(0.2, 0.9, len(samples))
    for number, sample in enumerate(samples.values()):
        alone = maker(any_encoder, masking).make([sample])
        for other in (row(batch, number), row(backwards, -1 - number)):
            assert all(torch.equal(value, other[name]) for name, value in row(alone, 0).items())
        with torch.no_grad():
            (single,) = AudioXTrainingModel(any_encoder)(alone.noise, timesteps[number : number + 1], alone)
        torch.testing.assert_close(single, together[number], atol=1e-4, rtol=1e-4)


def test_embeddings_in_half_precision(encoder, media):
    """Frozen encoders may return half precision, while null embeddings are float32."""
    half = RecordEncoder(build_kind("audio_autoencoder"), torch.device("cpu"), VIDEO_PROMPT)
    for name in ("text_encoder", "image_encoder"):
        getattr(half.pipe, name).to(torch.bfloat16)
    chosen = ({"video": True}, {"text": True}, {})
    batches = [maker(one).make([read(one, media, **each)[0] for each in chosen]) for one in (encoder, half)]
    for name, expected in batches[0].embeds.items():
        assert batches[1].embeds[name].dtype == torch.float32
        assert (batches[1].embeds[name] - expected).abs().max() < 0.05 * expected.abs().max() + 1e-6
    assert torch.equal(batches[0].latents, batches[1].latents)


# The training model


@torch.no_grad()
def test_masks(any_encoder, samples):
    masking = MaskingConfig(mask_text_rate=0.4, mask_video_rate=0.4)
    batch = maker(any_encoder, masking).make([samples["text and video"], samples["video"]])
    given, conditioner = {}, any_encoder.pipe.conditioner
    hook = conditioner.register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)
    predict(any_encoder, batch)
    hook.remove()
    for name, mask in (("text_embeds", batch.text_mask), ("video_embeds", batch.video_mask)):
        assert 0.2 < (mask == 0).float().mean() < 0.6
        assert not given[name][mask == 0].any()
        assert torch.equal(given[name][mask == 1], batch.embeds[name][mask == 1])
        assert batch.embeds[name][mask == 0].any(), "the masked part was already zero"
    for name in given.keys() & {"sync_embeds", "audio_latents", "audio_waveform"}:
        assert torch.equal(given[name], batch.embeds[name])


@torch.no_grad()
def test_a_dropped_context_is_zero(any_encoder, samples):
    pipe = any_encoder.pipe
    batch = maker(any_encoder).make([samples["no context"], samples["text and video"]])
    predicted = predict(any_encoder, batch)
    context = pipe.conditioner(**batch.embeds).condition_embeds
    timestep = torch.tensor([0.2, 0.9])
    without = pipe.transformer(batch.noise, timestep, torch.zeros_like(context)).sample
    full = pipe.transformer(batch.noise, timestep, context).sample
    torch.testing.assert_close(predicted[0], without[0])
    torch.testing.assert_close(predicted[1], full[1])
    assert not torch.allclose(full[0], without[0], atol=1e-3)


TRAINED = ("text_encoder", "image_encoder", "sync_encoder")


def available(encoder: RecordEncoder) -> tuple[str, ...]:
    """Return the encoders that can be trained."""
    return tuple(name for name in TRAINED if getattr(encoder.pipe, name) is not None)


def with_trained(encoder: RecordEncoder, *names: str) -> RecordEncoder:
    return RecordEncoder(encoder.pipe, encoder.device, encoder.video_prompt, names)


def read_batch(encoder: RecordEncoder, samples: dict[str, Sample]) -> Batch:
    """Make a batch of the records of some samples, encoded by `encoder`."""
    read = []
    for sample in samples.values():
        (encoded,) = encoder.encode([sample.record])
        read.append(replace(sample, encoded=encoded))
    return maker(encoder).make(read)


def test_trained_and_frozen_encoders_agree(any_encoder, samples):
    batch = read_batch(any_encoder, samples)
    frozen, heard = predict(any_encoder, batch), batch.samples[0].record.waveform.clone()
    for name in available(any_encoder):
        encoder = with_trained(any_encoder, name)
        trained = predict(encoder, read_batch(encoder, samples))
        torch.testing.assert_close(trained, frozen, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(sample.record.waveform, heard) for sample in batch.samples)


@pytest.mark.parametrize("name, network", [("text_encoder", "encoder"), ("image_encoder", "vision_model")])
def test_trained_encoders_encode_once(encoder, media, name, network):
    (sample,) = read(encoder, media, text=True, video=True, audio="previous")
    record = sample.record
    trained, calls = with_trained(encoder, name), []
    make = maker(trained).make
    handle = getattr(getattr(encoder.pipe, name), network).register_forward_hook(lambda *_: calls.append(name))
    (encoded,) = trained.encode([record])
    predict(trained, make([replace(sample, encoded=encoded)]))
    handle.remove()
    assert len(calls) == 1


def test_gradients_reach_the_trained_networks(any_encoder, samples):
    names = available(any_encoder)
    trained = with_trained(any_encoder, *names)
    batch = read_batch(trained, samples)
    model = AudioXTrainingModel(trained)
    model(batch.noise, torch.full((len(samples),), 0.5), batch).pow(2).mean().backward()
    for module in (model.transformer, model.conditioner, *(model.encoders[name] for name in names)):
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"transformer", "conditioner", "encoders"}
    model.zero_grad()
