"""The state of many battles at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Battle(NamedTuple):
    """E copies of a battle of U units, N of them allies; everything the next step depends on.

    The copies are the last axis, contiguous in memory, so that every operation runs through long rows.
    position (2, U, E) in cells; health, shield, energy (U, E); cooldown (U, E) loops until the next shot;
    calm (U, E) loops since the last damage; target (U, E) unit index each one is after, its own for none;
    shots (U, E) unit index last fired at in the last step, its own for none; last_actions (N, E), -1 before the first;
    available (N, actions, E) bool; elapsed (E,) steps of this battle; clock (E,) steps since the seed; key (E,) of the
    random numbers; terminated, truncated, won (E,) bool.
    """

    position: Tensor
    health: Tensor
    shield: Tensor
    energy: Tensor
    cooldown: Tensor
    calm: Tensor
    target: Tensor
    shots: Tensor
    last_actions: Tensor
    available: Tensor
    elapsed: Tensor
    clock: Tensor
    key: Tensor
    terminated: Tensor
    truncated: Tensor
    won: Tensor


def choose(condition: Tensor, first: Battle, second: Battle) -> Battle:
    """Copy by copy the first battle where the condition (E,) holds, else the second."""
    return Battle(*(torch.where(condition, a, b) for a, b in zip(first, second, strict=True)))
