import pytest
import torch
from helpers import normal

from audiox_diffusers import AudioXAutoencoderOobleck

RATIOS = [[2, 4], [2, 4, 4, 8, 8]]


@pytest.fixture
def model(autoencoder_case):
    return autoencoder_case.model()


@pytest.fixture
def sample(autoencoder_case):
    return autoencoder_case.inputs()["sample"]


@pytest.fixture
def vae_of(autoencoder_case):
    """A small model with the given ratios, and tiles of 16 latent frames instead of 128."""

    def build(ratios, core=16):
        vae = autoencoder_case.model(
            downsampling_ratios=ratios, encoder_hidden_size=2, channel_multiples=[1] * len(ratios), decoder_channels=2
        )
        halo = vae.tile_latent_overlap
        assert vae.tile_latent_min_length == 128 + 2 * halo
        assert vae.tile_sample_min_length == vae.tile_latent_min_length * vae.hop_length
        assert vae.tile_sample_overlap == halo * vae.hop_length
        vae.tile_latent_min_length = core + 2 * halo
        vae.tile_sample_min_length = vae.tile_latent_min_length * vae.hop_length
        return vae

    return build


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[-1]))
    return calls


@torch.no_grad()
@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("cores", [2.5, 3, 3.0625, 5.9375])
def test_tiled_decoding_is_exact(vae_of, close, ratios, cores):
    vae = vae_of(ratios)
    latents = normal(2, 3, int(16 * cores) + 2 * vae.tile_latent_overlap)
    expected = vae.decode(latents).sample
    vae.enable_tiling()
    calls = count_calls(vae.decoder)
    close(vae.decode(latents).sample, expected, 1e-5)
    assert len(calls) >= 3 and max(calls) <= vae.tile_latent_min_length
    vae.disable_tiling()
    assert torch.equal(vae.decode(latents).sample, expected)


@torch.no_grad()
@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("cores", [2.5, 3, 5.9375])
@pytest.mark.parametrize("rest", [0.0, 0.25, 0.5, 0.75, 0.98])
def test_tiled_encoding_is_exact(vae_of, close, ratios, cores, rest):
    """Also with an incomplete last frame, wherever the last tile starts."""
    vae = vae_of(ratios)
    frames = int(16 * cores) + 2 * vae.tile_latent_overlap
    sample = normal(2, 2, int((frames + rest) * vae.hop_length))
    expected = vae.encode(sample).latent_dist
    vae.enable_tiling()
    calls = count_calls(vae.encoder)
    tiled = vae.encode(sample).latent_dist
    assert tiled.mean.shape[-1] == frames
    close(tiled.mean, expected.mean, 1e-5)
    close(tiled.std, expected.std, 1e-5)
    # Plus the incomplete frame.
    assert len(calls) >= 3 and max(calls) < vae.tile_sample_min_length + vae.hop_length


@torch.no_grad()
@pytest.mark.parametrize("samples", [*range(-3, 9), 16 * 8 - 1, 16 * 8, 16 * 8 + 1])
def test_tiled_encoding_around_the_end_of_a_tile(vae_of, close, samples):
    vae = vae_of([2, 4])
    sample = normal(1, 2, 5 * 16 * 8 + samples)
    expected = vae.encode(sample).latent_dist.mean
    vae.enable_tiling()
    calls = count_calls(vae.encoder)
    close(vae.encode(sample).latent_dist.mean, expected, 1e-5)
    assert len(calls) > 1


@torch.no_grad()
def test_tiling_with_the_default_tiles(model, close):
    latents, sample = normal(1, 3, 500), normal(1, 2, 4001)
    expected = model.decode(latents).sample, model.encode(sample).latent_dist.mean
    model.enable_tiling()
    calls = count_calls(model.decoder), count_calls(model.encoder)
    close(model.decode(latents).sample, expected[0], 1e-5)
    close(model.encode(sample).latent_dist.mean, expected[1], 1e-5)
    assert all(len(lengths) > 1 for lengths in calls)


def test_overlap_longer_than_a_tile(model):
    model.enable_tiling()
    model.tile_sample_overlap = model.tile_sample_min_length // 2
    with pytest.raises(ValueError, match="tile_sample_overlap"):
        model.encode(normal(1, 2, 4001))


def test_short_audio_is_not_tiled(model, sample):
    model.enable_tiling()
    calls = count_calls(model.encoder), count_calls(model.decoder)
    model(sample)
    assert calls == ([160], [20])


@torch.no_grad()
def test_slicing(model, sample, close):
    expected = model(sample).sample
    model.enable_slicing()
    calls = count_calls(model.decoder)
    close(model(sample).sample, expected, 1e-5)
    assert len(calls) == 2
    model.disable_slicing()
    assert torch.equal(model(sample).sample, expected)


def reach(output: torch.Tensor, given: torch.Tensor) -> tuple[int, int]:
    """Return the first and last position of `given` that `output` depends on."""
    (gradient,) = torch.autograd.grad(output.double().abs().sum(), given)
    places = gradient.abs().sum(dim=(0, 1)).nonzero()
    return places.min().item(), places.max().item()


@pytest.mark.parametrize("ratios", RATIOS)
def test_overlap_covers_the_receptive_field(vae_of, ratios):
    """The overlap covers everything that an output depends on, and little more."""
    vae = vae_of(ratios).double()
    hop, halo = vae.hop_length, vae.tile_latent_overlap
    frames = 4 * halo
    middle = frames // 2

    latents = normal(1, 3, frames).double().requires_grad_()
    sound = vae.decoder(latents)
    first, last = reach(sound[..., middle * hop : (middle + 1) * hop], latents)
    decoder = max(middle - first, last - middle)
    assert decoder <= vae._decoder_radius(ratios[::-1]) <= 2 * decoder

    sound = normal(1, 2, frames * hop).double().requires_grad_()
    first, last = reach(vae.encoder(sound)[..., middle], sound)
    encoder = max(middle * hop - first, last - (middle + 1) * hop + 1)
    assert encoder <= vae._encoder_radius(ratios) <= 2 * encoder

    assert max(decoder, -(-encoder // hop)) <= halo <= 2 * max(decoder, -(-encoder // hop))


@torch.no_grad()
def test_weight_norm(autoencoder_case, model, sample, run, close, tmp_path):
    folded_names, expected = set(model.state_dict()), model(sample).sample
    weights = model.state_dict()
    with pytest.raises(ValueError, match="already folded"):
        model.fold_weight_norm()
    assert model._supports_group_offloading

    model.apply_weight_norm()
    assert model.config.use_weight_norm and not model._supports_group_offloading
    normed = autoencoder_case.model_class(**autoencoder_case.config, use_weight_norm=True)
    assert set(model.state_dict()) == set(normed.state_dict())
    assert {"encoder.conv2.weight_g", "decoder.block.0.conv_t1.weight_v"} < set(model.state_dict())
    assert {name.replace("_g", "").replace("_v", "") for name in model.state_dict()} == folded_names
    close(model(sample).sample, expected, 1e-5)
    with pytest.raises(ValueError, match="already applied"):
        model.apply_weight_norm()

    model.save_pretrained(tmp_path)
    loaded = AudioXAutoencoderOobleck.from_pretrained(tmp_path)
    assert loaded.config.use_weight_norm
    assert torch.equal(loaded(sample).sample, model(sample).sample)

    loaded.fold_weight_norm()
    assert not loaded.config.use_weight_norm and set(loaded.state_dict()) == folded_names
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, weights[name])
    loaded.save_pretrained(tmp_path / "folded")
    assert torch.equal(
        AudioXAutoencoderOobleck.from_pretrained(tmp_path / "folded")(sample).sample, run(loaded, {"sample": sample})
    )


def test_weight_norm_is_trained(model, sample):
    model.apply_weight_norm()
    model(sample).sample.square().mean().backward()
    assert model.encoder.conv1.weight_g.grad.any() and model.decoder.conv2.weight_v.grad.any()
    with pytest.raises(ValueError, match="group offloading"):
        model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def test_latent_width_is_independent_of_the_first_layer(autoencoder_case):
    """`AutoencoderOobleck` needs twice as many channels in the first layer as in the latents."""
    vae = autoencoder_case.model(encoder_hidden_size=4, decoder_input_channels=5)
    latents = vae.encode(normal(1, 2, 80)).latent_dist.mean
    assert latents.shape == (1, 5, 10)
    assert vae.decode(latents).sample.shape == (1, 2, 80)


def test_odd_ratios(autoencoder_case):
    with pytest.raises(ValueError, match="downsampling_ratios"):
        autoencoder_case.model(downsampling_ratios=[2, 3])


@torch.no_grad()
def test_posterior(model, sample):
    posterior = model.encode(sample).latent_dist
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    expected = posterior.mean + posterior.std * normal(*posterior.mean.shape)
    assert torch.equal(draws[0], expected)
    assert torch.equal(posterior.mode(), posterior.mean)
    (as_tuple,) = model.encode(sample, return_dict=False)
    assert torch.equal(as_tuple.mean, posterior.mean)
    (decoded,) = model.decode(posterior.mode(), return_dict=False)
    assert torch.equal(decoded, model(sample).sample)
    decoded = model.decode(draws[0]).sample
    assert torch.equal(
        decoded, model(sample, sample_posterior=True, generator=torch.Generator().manual_seed(0)).sample
    )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoder_stays_in_float32(model, sample, tmp_path, close, dtype):
    latents = normal(2, 3, 20)
    expected = model.decode(latents.to(dtype).float()).sample
    model.save_pretrained(tmp_path)
    half = AudioXAutoencoderOobleck.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {parameter.dtype for parameter in half.encoder.parameters()} == {dtype}
    assert {parameter.dtype for parameter in half.decoder.parameters()} == {torch.float32}
    decoded = half.decode(latents.to(dtype)).sample
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, expected)
    close(half.encode(sample.to(dtype)).latent_dist.mean.float(), model.encode(sample).latent_dist.mean, 0.05)
    assert half(sample.to(dtype)).sample.dtype == torch.float32


def test_blocks_are_offloaded_for_decode(model):
    """`decode` does not call `forward`, whose hook would move everything outside the blocks as one group."""
    model.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1)
    for part in (model.encoder, model.decoder):
        assert part._diffusers_hook.get_hook("group_offloading") is not None
        assert part.block[0]._diffusers_hook.get_hook("group_offloading") is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_seed_draws_the_same_noise_in_every_precision(autoencoder_case, dtype):
    model = autoencoder_case.model()
    sample = autoencoder_case.inputs()["sample"]

    def draw(model, sample):
        with torch.no_grad():
            posterior = model.encode(sample).latent_dist
        return (posterior.sample(torch.Generator().manual_seed(0)) - posterior.mean) / posterior.std

    torch.testing.assert_close(draw(model.to(dtype), sample.to(dtype)), draw(autoencoder_case.model(), sample))
