"""The seam for several processes that train one learner: who computes which rows, and one gradient out of several.

All of them have the same batch and the same noise, so each could do everything. What they divide is the rows of the
networks that take each row by itself; what comes back is whole, so losses, masks, weights and whatever else looks at
the batch as a whole stay as they are. Who the others are, and how to reach them, is known to the `Crew` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn

from madiff.diffusion import computing


class Crew(Protocol):
    """The processes that train together."""

    def compute(self, network: Callable[..., Tensor], given: Sequence[Any]) -> Tensor:
        """network(*given), led by the rows of what is given, of which this process computes its part only.

        In the backward pass it passes on the whole gradient of its input, and in the network's own weights leaves a
        gradient whose average over the processes is the whole one.
        """
        ...

    def average(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The mean of every gradient over the processes."""
        ...


_crew: ContextVar[Crew | None] = ContextVar("crew", default=None)


@contextmanager
def among(crew: Crew | None) -> Iterator[None]:
    """Inside, networks and gradients are the crew's; None: this process is by itself."""
    token = _crew.set(crew)
    try:
        yield
    finally:
        _crew.reset(token)


class RowWise(nn.Module):
    """Base of networks that take each row by itself: axis 0 of every tensor given, in mappings too, and of the result.

    Where several processes train together, each computes its part of the rows. Networks with dropout are computed
    whole, because what is drawn for a row would depend on the part it is in. How, in what precision: see `computing`.
    """

    def __call__(self, *given: Any) -> Any:
        crew = _crew.get()
        if crew is None or draws(self):
            return self._computed(*given)
        with among(None):
            return crew.compute(self._computed, given)

    def _computed(self, *given: Any) -> Any:
        return computing.compute(self, super().__call__, given)


def shared() -> bool:
    """Whether there are others."""
    return _crew.get() is not None


def draws(network: nn.Module) -> bool:
    """Whether a network draws from torch's own generator as it is used now."""
    return any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in network.modules())


def divisible(networks: Iterable[nn.Module]) -> bool:
    """Whether something that is trained in these networks can be divided."""
    return any(
        isinstance(part, RowWise) and not draws(part) and any(p.requires_grad for p in part.parameters())
        for network in networks for part in network.modules()
    )  # fmt: skip


def settle(parameters: Iterable[nn.Parameter]) -> None:
    """Make the gradients of parameters those of all processes; every optimiser's step comes after this."""
    crew = _crew.get()
    if crew is None:
        return
    found = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    for (parameter, _), gradient in zip(found, crew.average([own for _, own in found]), strict=True):
        parameter.grad = gradient
