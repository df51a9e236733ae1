"""Networks through torch.compile: faster kernels for the same modules, whose weights keep their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from madiff.diffusion.capture import leaves

SHAPES = 64  # versions of one class of networks, over all sizes and uses; beyond it torch goes on without compiling


class Compiled:
    """Calls networks by compiled versions of their `forward`, made when they are first needed.

    A network that learns is compiled for the batch it gets, whose size never changes. One that only plans or acts is
    asked for any number of rows: that number is a symbol of its version, so that no other number, nor a smaller last
    batch, makes another one (a single row does: torch takes 1 for a constant; and so do fewer than 16 rows of a
    convolution, for which torch has another kernel).
    """

    def __init__(self, threads: int) -> None:
        """threads: how many versions are built at a time."""
        import torch._dynamo
        import torch._inductor.config  # takes seconds, which only those pay who compile

        torch._dynamo.config.recompile_limit = SHAPES
        torch._inductor.config.compile_threads = threads
        self.made: dict[tuple[type[nn.Module], bool], Callable[..., Tensor]] = {}

    def __call__(self, network: nn.Module, given: Sequence[Any]) -> Tensor:
        learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in network.parameters())
        if not learns:
            for tensor in leaves(given):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._version(type(network), learns)(network, *given)

    def _version(self, kind: type[nn.Module], learns: bool) -> Callable[..., Tensor]:
        if (kind, learns) not in self.made:
            # Of the class, not of its instances: nothing here keeps a network alive, and no name in it changes.
            self.made[kind, learns] = torch.compile(kind.forward, dynamic=False if learns else None)
        return self.made[kind, learns]


def trial(device: torch.device) -> None:
    """Compile and run one sum; raises whatever torch.compile does on a machine that lacks what it needs."""
    torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(8, device=device))
