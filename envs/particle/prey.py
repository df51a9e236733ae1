"""The prey of tag and world, no agent itself: a script that flees, or the network that OMAR's authors trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from madiff.interfaces import UserError

from .scene import Plan

Prey = Callable[[Tensor], Tensor]
LAYERS = ("fc1", "fc2", "fc3")
HIDDEN = 64
EPSILON = 1e-5
"""Of the batch normalisation."""

EDGE, EDGE_WEIGHT = 0.75, 12.0
OBSTACLE_RANGE, OBSTACLE_WEIGHT = 0.25, 0.06
PACE = 0.15
"""Part of its force it uses: its speed is then 0.96, just under a predator's."""


class Flee:
    """Runs from the predators, the near ones most, keeps within the square of half side 1 and off the obstacles.

    Ours, for those without the trained prey: returns against it are not comparable with published ones. It acts on
    the prey's own observation: velocity 2, position 2, what stands still, the predators.
    """

    def __init__(self, plan: Plan) -> None:
        still = len(plan.bodies) - plan.movers
        self.obstacles = slice(4, 4 + 2 * len(plan.rows("obstacle")))
        self.predators = slice(4 + 2 * still, 4 + 2 * still + 2 * (plan.movers - 1))

    def __call__(self, observations: Tensor) -> Tensor:
        """(copies, prey, features) -> (copies, prey, 2) in [-1, 1]."""
        place = observations[..., 2:4]
        predators = observations[..., self.predators].unflatten(-1, (-1, 2))
        obstacles = observations[..., self.obstacles].unflatten(-1, (-1, 2))
        away = -(predators / _squared(predators).clamp(min=1e-3).pow(1.5)).sum(-2)
        near = (_squared(obstacles).clamp(min=1e-6).sqrt() - 0.2).clamp(min=0.02)
        off = -(obstacles / near**2 * (near < OBSTACLE_RANGE)).sum(-2)
        inwards = -place.sign() * (place.abs() - EDGE).clamp(min=0)
        wish = away / _squared(away).clamp(min=1e-9).sqrt() + OBSTACLE_WEIGHT * off + EDGE_WEIGHT * inwards
        return PACE * wish / _squared(wish).clamp(min=1e-12).sqrt()


def _squared(vectors: Tensor) -> Tensor:
    return vectors.square().sum(-1, keepdim=True)


class Trained:
    """OMAR's prey: input normalised by running statistics, two hidden layers of 64 with ReLU, tanh; no noise."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def __call__(self, observations: Tensor) -> Tensor:
        """(copies, 1, features) -> (copies, 1, 2) in [-1, 1]."""
        w = self.weights
        spread = torch.sqrt(w["in_fn.running_var"] + EPSILON)
        x = (observations - w["in_fn.running_mean"]) / spread * w["in_fn.weight"] + w["in_fn.bias"]
        for layer in LAYERS[:-1]:
            x = F.relu(F.linear(x, w[f"{layer}.weight"], w[f"{layer}.bias"]))
        return torch.tanh(F.linear(x, w["fc3.weight"], w["fc3.bias"]))


def load(path: str | os.PathLike[str], features: int, device: torch.device, dtype: torch.dtype) -> Trained:
    """The prey of a file in OMAR's layout: the last entry of `agent_params`, its `policy`.

    Only tensors and plain containers are read. Raises UserError if the file cannot be read, holds anything else or a
    network of other shapes, or numbers that are not finite.
    """
    place = Path(os.path.expanduser(path))
    if place.exists() and not place.is_file():  # a pipe would be waited for
        raise UserError(f"{place} cannot be read (not a plain file)", "prey", "scripted, or a file")
    try:
        saved = torch.load(place, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{place} cannot be read ({error.strerror or error})", "prey", "scripted, or a file") from None
    except Exception:  # unpickling fails in as many ways as a file can be wrong
        raise UserError(f"{place} is no file of tensors alone", "prey", "scripted, or a prey saved by OMAR") from None
    weights = _policy(saved, place)
    for name, shape in _shapes(features).items():
        found = weights.get(name)
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else "missing"
            raise UserError(f"{place}: {name} is {what}", "prey", f"shape {shape}, as this scenario's prey has")
        if not bool(found.isfinite().all()) or (name == "in_fn.running_var" and bool((found < 0).any())):
            raise UserError(f"{place}: {name} holds impossible numbers", "prey", "a prey saved by OMAR")
    return Trained({name: weights[name].to(device, dtype) for name in _shapes(features)})


def _policy(saved: Any, place: Path) -> dict[str, Any]:
    try:
        weights = saved["agent_params"][-1]["policy"]
    except (KeyError, IndexError, TypeError):
        weights = None
    if not isinstance(weights, dict):
        raise UserError(f"{place} holds no agent_params with a policy", "prey", "a prey saved by OMAR")
    return weights


def _shapes(features: int) -> dict[str, tuple[int, ...]]:
    normaliser = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (features,))
    sizes = (features, HIDDEN, HIDDEN, 2)
    shapes = {f"in_fn.{name}": shape for name, shape in normaliser.items()}
    for layer, inputs, outputs in zip(LAYERS, sizes[:-1], sizes[1:], strict=True):
        shapes |= {f"{layer}.weight": (outputs, inputs), f"{layer}.bias": (outputs,)}
    return shapes
