"""Which blocks gradient checkpointing computes twice, and which tensors are offloaded."""

import pytest
import torch
from helpers import refused

from audiox_diffusers.testing import create_small_pipeline
from audiox_diffusers.training.methods.activations import OffloadedActivations, enable_gradient_checkpointing


@pytest.fixture
def transformer():
    return create_small_pipeline().transformer.train()


def loss_of(transformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    config = transformer.config
    sample = torch.randn(1, config.in_channels, 8, generator=generator)
    context = torch.randn(1, 4, config.cross_attention_input_dim, generator=generator)
    return transformer(sample, torch.tensor([0.5]), context).sample.square().mean()


@pytest.mark.parametrize(("interval", "twice"), [(None, ()), (1, (0, 1)), (2, (0,))])
def test_every_nth_block_is_computed_twice(transformer, interval, twice):
    assert len(transformer.transformer_blocks) == 2
    if interval is not None:
        enable_gradient_checkpointing(transformer, interval)
    calls = [0, 0]
    for number, block in enumerate(transformer.transformer_blocks):
        # Its first layer, because the second computation stops as soon as it can.
        block.norm1.register_forward_pre_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    loss_of(transformer).backward()
    assert calls == [2 if number in twice else 1 for number in range(2)]


def test_more_than_the_blocks(transformer):
    with refused("--gradient_checkpointing_interval must be at most 2", "got 3"):
        enable_gradient_checkpointing(transformer, 3)


def test_weights_are_not_copied(transformer):
    offloading = OffloadedActivations(transformer)
    weight = transformer.transformer_blocks[0].ff.net[2].weight
    assert offloading.pack_hook(weight)[1] is weight
    activation = torch.randn(3)
    device, packed = offloading.pack_hook(activation)
    assert packed is not activation and torch.equal(offloading.unpack_hook((device, packed)), activation)


def test_gradients_are_the_same(transformer):
    loss_of(transformer).backward()
    expected = [parameter.grad.clone() for parameter in transformer.parameters()]
    transformer.zero_grad()
    with OffloadedActivations(transformer):
        loss = loss_of(transformer)
    loss.backward()
    for parameter, gradient in zip(transformer.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
