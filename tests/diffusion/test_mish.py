"""Mish by one exponential is torch's own."""

import pytest
import torch
from torch.nn import functional as F

from madiff.diffusion.networks import mish as module
from madiff.diffusion.networks.mish import MANY, Mish, mish

PLACES = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([-1e30, -1e4, 0.0, 1e4, 1e30, torch.inf])])


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_it_is_mish(dtype, error):
    x = PLACES.to(dtype)
    torch.testing.assert_close(mish(x).double(), F.mish(x.double()), rtol=error, atol=1e-12)


def test_nan_stays():
    assert mish(torch.tensor([torch.nan])).isnan().all()


def test_only_inference_of_much_takes_it(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "mish", lambda x: calls.append(len(x)))
    layer = Mish()
    layer(torch.zeros(MANY))
    assert not calls  # its gradient is torch's
    with torch.no_grad():
        layer(torch.zeros(MANY - 1))
        layer(torch.zeros(MANY, dtype=torch.float16))  # in which the square of an exponential overflows early
        layer(torch.zeros(MANY))
    assert calls == [MANY]
