"""Networks whose products have weights of a lower precision, rounded once rather than at every call.

Autocast rounds weights whenever they are used: for a network that plans in fifteen calls from the same weights, fifteen
times. The twins here have them rounded, and share all else with the network they stand for.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

PRODUCTS = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)  # what autocast rounds
Stamp = tuple[object, ...]


@dataclass(frozen=True)
class Twin:
    """A network with rounded weights, and which values of the weights these are."""

    network: nn.Module
    dtype: torch.dtype
    stamp: Stamp


_twins: WeakKeyDictionary[nn.Module, Twin] = WeakKeyDictionary()


def rounded(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with the weights of its products in dtype, for calls without gradients; anew when they change."""
    weights = [parameter for part in network.modules() if isinstance(part, PRODUCTS) for parameter in part.parameters()]
    stamp = (network.training, *((id(weight), weight._version) for weight in weights))
    twin = _twins.get(network)
    if twin is None or (twin.dtype, twin.stamp) != (dtype, stamp):
        twin = _twins[network] = Twin(_with(network, weights, dtype), dtype, stamp)
    return twin.network


def _with(network: nn.Module, weights: list[nn.Parameter], dtype: torch.dtype) -> nn.Module:
    """A copy of the network's modules that holds the same tensors, but for these weights."""
    tensors: dict[int, Tensor] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    tensors |= {id(weight): nn.Parameter(weight.detach().to(dtype), requires_grad=False) for weight in weights}
    return deepcopy(network, tensors)
