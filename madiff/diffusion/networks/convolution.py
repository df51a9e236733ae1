"""Convolution over time, with a gradient for wide layers that does not wait for memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGE = 1 << 22  # weights; beyond it oneDNN's gradient of them takes twice the time of this one (benchmarks/README.md)


class TimeConv1d(nn.Conv1d):
    """nn.Conv1d of stride 1 that keeps the length: (N, C, T) -> (N, C', T); parameters and results are nn.Conv1d's.

    On a CPU the gradient of many weights is one matrix product, whose rows are the channels out and whose columns
    are what each weight has seen.
    """

    bias: nn.Parameter

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        """kernel: an odd number of time steps."""
        super().__init__(channels, out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.numel() < LARGE or x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        given = (x, self.weight, self.bias)
        if torch.is_autocast_enabled("cpu"):  # which does not look into functions of one's own
            given = tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in given)
        return Convolution.apply(*given)


class Convolution(torch.autograd.Function):
    """conv1d(x, weight, bias) with zeros around x; the gradient of the weights by one matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv1d(x, weight, bias, padding=weight.shape[2] // 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        before = input_gradient(gradient, x, weight) if ctx.needs_input_grad[0] else None
        return before, weight_gradient(gradient, x, weight), gradient.sum((0, 2))


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient (N, C, T) of x for that of the result, (N, C', T)."""
    padding, wanted = weight.shape[2] // 2, [True, False, False]
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, [1], [padding], [1], False, [0], 1, wanted)[0]


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient (C', C, kernel) of the weights: sum over rows and times of gradient (N, C', T) times what was seen."""
    out, channels, kernel = weight.shape
    seen = F.pad(x, (kernel // 2, kernel // 2)).unfold(2, x.shape[2], 1)  # (N, C, kernel, T)
    seen = seen.permute(0, 3, 1, 2).reshape(-1, channels * kernel)
    return (gradient.transpose(0, 1).reshape(out, -1) @ seen).view(weight.shape)
