"""Mish, x tanh(log(1 + e^x)) (arXiv 1908.08681), with one exponential where a processor infers much at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MANY = 1 << 15  # numbers; for fewer, torch's one call is faster than several
LARGEST = 20.0  # beyond it the result is x, and the square of e^x would overflow


class Mish(nn.Mish):
    """nn.Mish; torch computes an exponential, a logarithm and a hyperbolic tangent, in a time that shows in plans."""

    def forward(self, x: Tensor) -> Tensor:
        inferring = x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return mish(x) if inferring and x.numel() >= MANY and x.dtype != torch.float16 else F.mish(x)


def mish(x: Tensor) -> Tensor:
    """x n / (n + 2) with n = e^x (e^x + 2), which is tanh(log(1 + e^x)) written out."""
    power = x.clamp(max=LARGEST).exp_()
    n = power.square().add_(power, alpha=2)
    return n.div_(n + 2).mul_(x)
