"""The convolution of wide layers is torch's own, forwards and backwards, whichever way it goes."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from madiff.diffusion.networks import convolution, fourier
from madiff.diffusion.networks.convolution import Convolution, TimeConv1d, kept_spectrum


@pytest.fixture
def transforming(monkeypatch):
    """Every layer goes by transforms."""
    for bound in ("FEWER", "WEIGHTS", "ROWS", "LEARNING_ROWS"):
        monkeypatch.setattr(convolution, bound, 0)


def pair(channels=3, out=4, kernel=5, dtype=torch.float64):
    """The layer and torch's own with the same weights."""
    ours, theirs = TimeConv1d(channels, out, kernel), nn.Conv1d(channels, out, kernel, padding=kernel // 2)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def gradients(layer, x, times):
    return torch.autograd.grad((layer(x) * times).sum(), (x, layer.weight, layer.bias))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("length", [1, 2, 6, 11, 24])
@pytest.mark.parametrize("numbers", [1, 1 << 22])  # one output channel at a time, and all
def test_result_and_gradients_are_those_of_torch(transforming, monkeypatch, kernel, length, numbers):
    monkeypatch.setattr(fourier, "PORTION", numbers)
    ours, theirs = pair(kernel=kernel)
    x, times = torch.randn(7, 3, length).double().requires_grad_(), torch.randn(7, 4, length).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)
    for found, wanted in zip(gradients(ours, x, times), gradients(theirs, x, times), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length, channels", [(6, 1024), (12, 512), (24, 128)])
def test_no_digit_is_lost(length, channels):
    """In float32 the error is about twice that of the direct sum; minimal filtering's is ten to a hundred times it."""
    x, weight = torch.randn(8, channels, length), torch.randn(32, channels, 5) / channels**0.5
    exact = F.conv1d(x.double(), weight.double(), padding=2)
    ours = fourier.convolved(x, fourier.spectrum(weight, length, torch.float32), torch.zeros(32), 5)
    direct = F.conv1d(x, weight, padding=2)
    assert (ours - exact).abs().mean() < 3 * (direct - exact).abs().mean()


@pytest.mark.parametrize("time", [1, 2, 5, 6, 24])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_products_are_counted(time, kernel):
    x, w, y = fourier.transforms(time, kernel, torch.float64)
    many = fourier.products(time, kernel)
    assert x.shape == (many, time) and w.shape == (many, kernel) and y.shape == (time, many)


def test_gradients_and_their_gradients_meet_finite_differences():
    shapes = ((2, 3, 5), (4, 3, 3), (4,))
    given = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(Convolution.apply, given)
    assert torch.autograd.gradgradcheck(Convolution.apply, given)


def test_only_wide_layers_of_many_rows_go_by_transforms(monkeypatch):
    """Those of the official network's deeper levels; learning needs more rows, as weights are transformed each time."""
    calls = []
    monkeypatch.setattr(Convolution, "apply", lambda *given: calls.append("learnt"))
    monkeypatch.setattr(convolution, "convolved", lambda *given: calls.append("inferred"))
    wide, narrow = TimeConv1d(512, 512, 5), TimeConv1d(128, 128, 5)
    for rows in (8, 24, 48):
        wide(torch.randn(rows, 512, 12))
        narrow(torch.randn(rows, 128, 24))
    assert calls == ["learnt"]
    with torch.no_grad():
        for rows in (8, 24, 48):
            wide(torch.randn(rows, 512, 12))
            narrow(torch.randn(rows, 128, 24))
    assert calls == ["learnt", "inferred", "inferred"]
    TimeConv1d(512, 512, 1)(torch.randn(64, 512, 12))  # nothing to gain with one tap
    assert len(calls) == 3


def test_autocast_rounds_as_it_does_for_torchs_own(transforming):
    ours, theirs = pair(dtype=torch.float32)
    x, times = torch.randn(7, 3, 6, requires_grad=True), torch.randn(7, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
        with torch.no_grad():
            assert ours(x).dtype == torch.bfloat16
            torch.testing.assert_close(ours(x), theirs(x), rtol=0.02, atol=0.05)
        pairs = zip(gradients(ours, x, times), gradients(theirs, x, times), strict=True)
    for found, wanted in pairs:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.08)


@torch.no_grad()
def test_kept_transforms_follow_the_weights(transforming):
    ours, theirs = pair()
    x = torch.randn(7, 3, 6).double()
    first = kept_spectrum(ours, 6, torch.float64)
    ours(x)
    assert kept_spectrum(ours, 6, torch.float64) is first
    for layer in (ours, theirs):
        layer.weight.mul_(1.5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)
    ours.load_state_dict(TimeConv1d(3, 4, 5).state_dict())
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours(x[..., :5]), theirs(x[..., :5]), rtol=0, atol=1e-13)
    twin = copy.deepcopy(ours)
    twin.weight.zero_()
    torch.testing.assert_close(twin(x), twin.bias[:, None].expand(7, -1, 6), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.float()(x.float()), theirs.float()(x.float()), rtol=0, atol=1e-5)


@torch.no_grad()
def test_kept_transforms_go_with_their_layer(transforming):
    layer = TimeConv1d(3, 4, 5)
    layer(torch.randn(7, 3, 6))
    kept = weakref.ref(kept_spectrum(layer, 6, torch.float32))
    del layer
    gc.collect()
    assert kept() is None
