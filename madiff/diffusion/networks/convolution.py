"""Convolution over time, by whichever way takes a processor least: wide layers go by Fourier transforms."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from madiff.diffusion.networks.fourier import convolved, portion, products, returned, spectrum, transformed, transforms

# Where transforms pay (benchmarks/README.md): so many times fewer products, for layers of so many weights, of so many
# rows; a layer that learns transforms its weights anew at every call.
FEWER, WEIGHTS, ROWS, LEARNING_ROWS = 2.5, 1 << 19, 24, 48


class TimeConv1d(nn.Conv1d):
    """nn.Conv1d of stride 1 that keeps the length: (N, C, T) -> (N, C', T); parameters and results are nn.Conv1d's.

    Where nothing is learnt, the weights' transform is kept until they change, in n / kernel times their memory.
    """

    bias: nn.Parameter

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        """kernel: an odd number of time steps."""
        super().__init__(channels, out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not self._pays(*x.shape):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):  # the weights' transform is rounded, not what it is made of
            x, bias = x.to(dtype), self.bias.to(dtype)
            if torch.is_grad_enabled():
                return Convolution.apply(x, self.weight, bias)
            return convolved(x, kept_spectrum(self, x.shape[2], dtype), bias, self.weight.shape[2])

    def _pays(self, rows: int, channels: int, time: int) -> bool:
        out, _, kernel = self.weight.shape
        if rows < (LEARNING_ROWS if torch.is_grad_enabled() else ROWS) or self.weight.numel() < WEIGHTS:
            return False
        there = products(time, kernel)
        return kernel * time * channels * out >= FEWER * there * (channels * out + time * (channels + out))


_kept: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Tensor]] = WeakKeyDictionary()


def kept_spectrum(layer: TimeConv1d, time: int, dtype: torch.dtype) -> Tensor:
    """The transform (n, C', C) of a layer's weights, made anew when they change."""
    weight = layer.weight
    stamp = (id(weight), weight.data_ptr(), weight._version, time, dtype)
    kept = _kept.get(layer)
    if kept is None or kept[0] != stamp:
        kept = _kept[layer] = stamp, spectrum(weight.detach(), time, dtype)
    return kept[1]


class Convolution(torch.autograd.Function):
    """conv1d(x, weight, bias) with zeros around x, by transforms; of some output channels at a time, so that the
    transform of their weights is used while it is near. x and bias have the type to compute in, weight may have more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        time, many = x.shape[2], portion(weight, x.shape[2])
        to, _, back = transforms(time, weight.shape[2], x.dtype)
        seen = transformed(to, x)
        parts = [
            returned(back, seen @ spectrum(part, time, x.dtype).transpose(1, 2), shift)
            for part, shift in zip(weight.split(many), bias.split(many), strict=True)
        ]
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        time, kernel, many = x.shape[2], weight.shape[2], portion(weight, x.shape[2])
        to, _, back = transforms(time, kernel, x.dtype)
        taps = transforms(time, kernel, weight.dtype)[1]
        seen, wanted = transformed(to, x), transformed(back.T, gradient)
        before, learnt = torch.zeros_like(seen), []
        for part, mine in zip(weight.split(many), wanted.split(many, dim=2), strict=True):
            if ctx.needs_input_grad[0]:
                before = before + mine @ spectrum(part, time, x.dtype)
            moved = (mine.transpose(1, 2) @ seen).to(weight.dtype)
            learnt.append((taps.T @ moved.flatten(1)).view(kernel, *part.shape[:2]).permute(1, 2, 0))
        given = returned(to.T, before).contiguous() if ctx.needs_input_grad[0] else None
        return given, torch.cat(learnt), gradient.sum((0, 2))
