"""The convolution of wide layers is torch's own, forwards and backwards."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from madiff.diffusion.networks import convolution
from madiff.diffusion.networks.convolution import Convolution, TimeConv1d


@pytest.fixture
def by_product(monkeypatch):
    """Every layer counts as a large one."""
    monkeypatch.setattr(convolution, "LARGE", 0)


def pair(channels=3, out=4, kernel=5, dtype=torch.float64):
    """The layer and torch's own with the same weights."""
    ours, theirs = TimeConv1d(channels, out, kernel), nn.Conv1d(channels, out, kernel, padding=kernel // 2)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def gradients(layer, x, times):
    return torch.autograd.grad((layer(x) * times).sum(), (x, layer.weight, layer.bias))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 6, 11])
def test_result_and_gradients_are_those_of_torch(by_product, kernel, length):
    ours, theirs = pair(kernel=kernel)
    x, times = torch.randn(7, 3, length).double().requires_grad_(), torch.randn(7, 4, length).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    for found, wanted in zip(gradients(ours, x, times), gradients(theirs, x, times), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_gradients_and_their_gradients_meet_finite_differences():
    shapes = ((2, 3, 5), (4, 3, 3), (4,))
    given = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(Convolution.apply, given)
    assert torch.autograd.gradgradcheck(Convolution.apply, given)


def test_large_layers_go_by_the_product_and_others_do_not(monkeypatch):
    calls = []
    monkeypatch.setattr(Convolution, "apply", lambda *given: calls.append(given) or F.conv1d(*given, padding=2))
    ours, _ = pair(dtype=torch.float32)
    x = torch.randn(2, 3, 6)
    ours(x)
    assert not calls
    monkeypatch.setattr(convolution, "LARGE", ours.weight.numel())
    ours(x)
    assert len(calls) == 1
    with torch.no_grad():
        ours(x)
    assert len(calls) == 1  # where nothing is learnt there is nothing to gain


def test_autocast_rounds_as_it_does_for_torchs_own(by_product):
    ours, theirs = pair(dtype=torch.float32)
    x, times = torch.randn(7, 3, 6, requires_grad=True), torch.randn(7, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
        pairs = zip(gradients(ours, x, times), gradients(theirs, x, times), strict=True)
    for found, wanted in pairs:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.05)
