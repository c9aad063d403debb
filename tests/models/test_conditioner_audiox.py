import pytest
import torch

from audiox_diffusers import AudioXConditioner
from audiox_diffusers.models import AudioXConditionerOutput


@pytest.fixture
def model(conditioner_case):
    return conditioner_case.model()


@pytest.fixture
def inputs(conditioner_case):
    return conditioner_case.inputs()


PARTS = {"video_embeds": "video_tokens", "text_embeds": "text_tokens", "audio_latents": "audio_tokens"}


@torch.no_grad()
def test_context_is_video_text_audio(model, inputs):
    output = model(**inputs)
    assert isinstance(output, AudioXConditionerOutput)
    assert output.video_tokens.shape == (2, 4, 8)
    assert output.text_tokens.shape == (2, 7, 8)
    assert output.audio_tokens.shape == (2, 6, 8)
    parts = (output.video_tokens, output.text_tokens, output.audio_tokens)
    assert torch.equal(output.condition_embeds, torch.cat(parts, dim=1))
    assert torch.equal(output.text_tokens, inputs["text_embeds"])
    as_tuple = model(**inputs, return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(as_tuple, (output.condition_embeds, *parts), strict=True))


def empty(model, name):
    return {
        "video_embeds": model.video_proj.empty_embedding,
        "text_embeds": torch.zeros(1, 7, 8),
        "audio_latents": model.audio_proj.empty_embedding,
    }[name]


@torch.no_grad()
@pytest.mark.parametrize("name", PARTS)
def test_missing_modality(model, inputs, name):
    """`None` and zeros both give the empty tokens, and leave the other modalities alone."""
    full = model(**inputs)
    for absent in (None, torch.zeros_like(inputs[name])):
        output = model(**inputs | {name: absent})
        assert torch.equal(output[PARTS[name]], empty(model, name).expand(2, -1, -1))
        for other in PARTS.values():
            if other != PARTS[name]:
                assert torch.equal(output[other], full[other])


@torch.no_grad()
@pytest.mark.parametrize("name", PARTS)
def test_one_modality_alone(model, inputs, name):
    output = model(**{name: inputs[name]})
    assert torch.equal(output[PARTS[name]], model(**inputs)[PARTS[name]])
    assert output.condition_embeds.shape == (2, 17, 8)
    for other in PARTS:
        if other != name:
            assert torch.equal(output[PARTS[other]], empty(model, other).expand(2, -1, -1))


@torch.no_grad()
def test_mixed_batch(model, inputs, close):
    """Each sample lacks another modality."""
    inputs["video_embeds"][0] = 0
    inputs["text_embeds"][1] = 0
    inputs["audio_latents"][1] = 0
    output = model(**inputs)
    first = model(text_embeds=inputs["text_embeds"][:1], audio_latents=inputs["audio_latents"][:1])
    second = model(video_embeds=inputs["video_embeds"][1:])
    close(output.condition_embeds[:1], first.condition_embeds, 1e-6)
    close(output.condition_embeds[1:], second.condition_embeds, 1e-6)


@torch.no_grad()
def test_a_partly_zero_modality_is_not_missing(model, inputs):
    inputs["video_embeds"][0] = 0
    inputs["video_embeds"][0, 1, 2, 3] = 1
    inputs["audio_latents"][0] = 0
    inputs["audio_latents"][0, 0, 0] = 1
    output = model(**inputs)
    assert not torch.allclose(output.video_tokens[:1], model.video_proj.empty_embedding)
    assert not torch.allclose(output.audio_tokens[:1], model.audio_proj.empty_embedding)


@torch.no_grad()
def test_video_projection_reshapes_instead_of_transposing(conditioner_case, inputs, close):
    """The buffer `[T * Q, D]` is reshaped to `[D, T * Q]`, and the result `[D, N]` to `[N, D]`."""
    model = conditioner_case.model(num_temporal_layers=0)
    video, proj, norm = inputs["video_embeds"], model.video_proj.proj, model.video_proj.norm_out
    frames, places, dim, tokens = 3, 5, 8, 4
    expected = torch.empty(2, tokens, dim)
    for i in range(2):
        memory = []
        for frame in range(frames):
            for place in range(places):
                memory += norm(video[i, frame, place] + model.video_proj.temporal_embedding[0, frame]).tolist()
        made = []
        for d in range(dim):
            row = torch.tensor(memory[d * frames * places : (d + 1) * frames * places])
            made += [(proj.weight[n] @ row + proj.bias[n]).item() for n in range(tokens)]
        for n in range(tokens):
            expected[i, n] = torch.tensor(made[n * dim : (n + 1) * dim])
    close(model(video_embeds=video).video_tokens, expected, 1e-5)


@torch.no_grad()
def test_time_transformer(model, close):
    """The written-out blocks. Each position of the image is a separate sequence."""
    block = model.video_proj.temporal_blocks[0]
    hidden = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    normed = block.norm1(hidden)
    heads = []
    for head in range(2):
        part = slice(64 * head, 64 * (head + 1))
        q, k, v = (normed @ layer.weight[part].T for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v))
        heads.append((q @ k.transpose(1, 2) / 8).softmax(-1) @ v)
    expected = hidden + block.attn1.to_out[0](torch.cat(heads, -1))
    inner, outer = block.ff.net[0].proj, block.ff.net[2]
    widened = inner(block.norm2(expected))
    expected = expected + outer(widened * 0.5 * (1 + torch.erf(widened / 2**0.5)))
    close(block(hidden), expected, 1e-5)


@torch.no_grad()
def test_order_of_frames_matters(model, inputs):
    video = inputs["video_embeds"]
    tokens = model(video_embeds=video).video_tokens
    assert not torch.allclose(model(video_embeds=video.flip(1)).video_tokens, tokens, atol=1e-3)
    assert not torch.allclose(model(video_embeds=video.flip(2)).video_tokens, tokens, atol=1e-3)


@torch.no_grad()
def test_audio_tokens(model, inputs, close):
    latents, proj = inputs["audio_latents"], model.audio_proj.proj
    expected = torch.stack([latents[:, :, n] @ proj.weight.T + proj.bias for n in range(6)], dim=1)
    close(model(audio_latents=latents).audio_tokens, expected, 1e-6)


def test_nothing_given(model):
    with pytest.raises(ValueError, match="`text_embeds`, `video_embeds`, `audio_latents`"):
        model()


def test_unequal_batches(model, inputs):
    with pytest.raises(ValueError, match=r"one batch size, got batch sizes \[1, 2\]"):
        model(text_embeds=inputs["text_embeds"], video_embeds=inputs["video_embeds"][:1])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("text_embeds", (2, 6, 8)),
        ("text_embeds", (2, 7, 9)),
        ("video_embeds", (2, 3, 5, 7)),
        ("video_embeds", (2, 4, 5, 8)),
        ("video_embeds", (2, 15, 8)),
        ("audio_latents", (2, 6, 3)),
        ("audio_latents", (2, 3, 7)),
    ],
)
def test_wrong_shape(model, inputs, name, shape):
    with pytest.raises(ValueError, match=f"`{name}` must have the shape"):
        model(**inputs | {name: torch.zeros(shape)})


@torch.no_grad()
def test_half_precision_is_close(model, inputs, close, tmp_path):
    model.save_pretrained(tmp_path)
    half = AudioXConditioner.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    inputs = {name: tensor.bfloat16() for name, tensor in inputs.items()}
    # One sample lacks video: its empty tokens have the same dtype as the others.
    inputs["video_embeds"][0] = 0
    output = half(**inputs)
    assert {tensor.dtype for tensor in output.values()} == {torch.bfloat16}
    expected = model(**{name: tensor.float() for name, tensor in inputs.items()})
    close(output.condition_embeds.float(), expected.condition_embeds, 0.05)


def test_gradient_reaches_the_embeddings_in_use(model, inputs):
    inputs["video_embeds"][0] = 0
    model(**inputs).condition_embeds.square().sum().backward()
    assert model.video_proj.empty_embedding.grad.any() and model.video_proj.proj.weight.grad.any()
    assert not model.audio_proj.empty_embedding.grad.any()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


# The later releases


def test_resampled_audio_tokens():
    """`audio_autoencoder_v2` projects latent frames to tokens, then channels to the width."""
    config = {
        "audio_type": "audio_autoencoder_v2",
        "latent_channels": 3,
        "num_audio_latents": 6,
        "num_audio_tokens": 5,
    }
    model = AudioXConditioner(condition_dim=8, num_text_tokens=2, num_temporal_heads=1, **config)
    latents = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = model(audio_latents=latents).audio_tokens
        time, width = model.audio_proj.proj_time, model.audio_proj.proj
        for b in range(2):
            for n in range(5):
                mixed = [(time.weight[n] * latents[b, c]).sum() + time.bias[n] for c in range(3)]
                expected = width.weight @ torch.stack(mixed) + width.bias
                torch.testing.assert_close(tokens[b, n], expected)
    with pytest.raises(ValueError, match="requires `audio_latents`"):
        model(text_embeds=torch.zeros(2, 2, 8))


def test_unused_modality_is_refused(conditioner_case):
    with pytest.raises(ValueError, match="This model does not use `sync_embeds`"):
        conditioner_case.model()(sync_embeds=torch.zeros(2, 9, 8), **conditioner_case.inputs())
    with pytest.raises(ValueError, match="`audio_type` must be one of"):
        AudioXConditioner(audio_type="mp3")
