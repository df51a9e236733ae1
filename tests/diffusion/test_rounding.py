"""Twins with rounded weights compute what autocast computes, and follow the network they stand for."""

import gc
import weakref

import pytest
import torch

from madiff.diffusion import computing
from madiff.diffusion.rounding import rounded
from tests.diffusion.test_computing import HALF, NETWORKS, batch, made


@pytest.fixture(autouse=True)
def plain_afterwards():
    yield
    computing.use(computing.PLAIN)


@torch.no_grad()
def by_autocast(network, x, cond):
    with torch.autocast("cpu", torch.bfloat16):
        return network(x, torch.full((len(x),), 0.5), cond).float()


@torch.no_grad()
def by_twin(network, x, cond):
    computing.use(HALF)
    out = network(x, torch.full((len(x),), 0.5), cond)
    computing.use(computing.PLAIN)
    return out


@pytest.mark.parametrize("name", NETWORKS)
def test_a_twin_computes_what_autocast_does_also_after_weights_have_moved(name):
    network, given = made(name), batch()
    torch.testing.assert_close(by_twin(network, *given), by_autocast(network, *given), rtol=0, atol=0)
    twin = rounded(network, torch.bfloat16)
    assert rounded(network, torch.bfloat16) is twin
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    assert rounded(network, torch.bfloat16) is not twin
    torch.testing.assert_close(by_twin(network, *given), by_autocast(network, *given), rtol=0, atol=0)
    network.load_state_dict(made(name).state_dict())
    torch.testing.assert_close(by_twin(network, *given), by_autocast(network, *given), rtol=0, atol=0)


def test_a_twin_shares_what_is_not_rounded_and_leaves_the_network_alone():
    network = made("unet")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    twin = dict(rounded(network, torch.bfloat16).named_parameters())
    kept = {name for name, value in network.named_parameters() if twin[name] is value}
    assert any("first.1" in name for name in kept)  # group norms
    assert all(twin[name].dtype == torch.bfloat16 for name in twin if name not in kept) and len(kept) < len(twin)
    assert all(torch.equal(before[name], value) and value.dtype == torch.float32
               for name, value in network.state_dict().items())  # fmt: skip


def test_gradients_do_not_go_through_twins():
    network, (x, cond) = made("mlp"), batch()
    computing.use(HALF)
    network(x, torch.full((len(x),), 0.5), cond).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_twin_goes_with_its_network():
    network = made("mlp")
    twin = weakref.ref(rounded(network, torch.bfloat16))
    del network
    gc.collect()
    assert twin() is None
