"""The seam for how networks are computed: in which precision, and compiled or as they stand; and who runs the loops.

What is in use holds for the whole process, as its threads do, from the moment the machine is set up. A learner and a
policy know nothing of it, and neither do checkpoints: a run may go on with other settings than it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from madiff.diffusion.rounding import rounded

Call = Callable[..., Any]


class Compiler(Protocol):
    """Makes faster versions of networks."""

    def __call__(self, network: nn.Module, given: Sequence[Any]) -> Tensor:
        """network(*given), by its faster version."""
        ...


class Recorder(Protocol):
    """Runs whole loops from recordings of the device's work."""

    def run(self, loop: Call, owner: Any, given: Mapping[str, Any]) -> Any:
        """loop(owner, **given), which gives nested tensors; `owner.hooks` take part in it."""
        ...


@dataclass(frozen=True)
class Computing:
    """precision: in which networks multiply, None: that of their weights; weights, inputs and results keep theirs."""

    precision: torch.dtype | None = None
    compiler: Compiler | None = None
    recorder: Recorder | None = None


PLAIN = Computing()
_used = PLAIN


def use(computing: Computing) -> None:
    """Compute like this from now on."""
    global _used
    _used = computing


def recorder() -> Recorder | None:
    """Whoever runs loops from recordings, where somebody does."""
    return _used.recorder


def compute(network: nn.Module, plainly: Call, given: Sequence[Any]) -> Tensor:
    """plainly(*given), the network's result for tensors of which the first gives its type, by what is in use."""
    used = _used
    if used is PLAIN or torch.compiler.is_compiling():
        return plainly(*given)
    like = given[0]
    with nullcontext() if used.precision is None else torch.autocast(like.device.type, used.precision):
        if used.compiler is not None:
            out = used.compiler(network, given)
        elif used.precision is None or used.recorder is not None or torch.is_grad_enabled():
            out = plainly(*given)  # a recording would go on with the weights that were rounded when it was made
        else:
            out = nn.Module.__call__(rounded(network, used.precision), *given)
    return out.to(like.dtype)
