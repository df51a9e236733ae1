"""How a battle begins: formations, their random shifts, and full strength."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.randomness import draw_bits, keys, uniform

from .battle import Battle
from .features import available_actions
from .rules import Rules
from .units import ENERGY_START, SHIELD_DELAY

SPAWN_SHIFT = 1.0
"""Cells by which each formation as a whole may be off its place, either way."""
SPAWN_JITTER = 0.1
"""Cells by which each unit is off in y; x stays in columns, so that agents remain sorted by type, x, y."""


def begin(rules: Rules, seed: int, copies: int) -> Battle:
    """New battles whose randomness follows from the seed and each copy's index."""
    key = keys(seed, copies, rules.device)
    return fresh(rules, key, torch.zeros_like(key))


def fresh(rules: Rules, key: Tensor, clock: Tensor) -> Battle:
    """New battles at the given clocks: both formations shifted as wholes, each unit's y a little on its own."""
    copies, allies = len(key), rules.allies
    chance = 2 * uniform(draw_bits(key, -1 - clock, rules.count + 4)) - 1
    shift = SPAWN_SHIFT * chance[rules.count :].view(2, 2, copies)
    shifts = torch.cat([shift[:, :1].expand(-1, allies, -1), shift[:, 1:].expand(-1, rules.enemies, -1)], 1)
    jitter = torch.stack([torch.zeros_like(chance), SPAWN_JITTER * chance])[:, : rules.count]
    rows = rules.health.expand(-1, copies)
    own = rules.index.expand(-1, copies)
    no = torch.zeros_like(key, dtype=torch.bool)
    position = rules.spawn + shifts + jitter
    return Battle(
        position=position,
        health=rows.clone(),
        shield=rules.shield.expand(-1, copies).clone(),
        energy=torch.full_like(rows, ENERGY_START) * rules.healer,
        cooldown=torch.zeros_like(rows),
        calm=torch.full_like(rows, SHIELD_DELAY),
        target=own.clone(),
        shots=own.clone(),
        last_actions=torch.full_like(own[:allies], -1),
        available=available_actions(rules, position, rows),
        elapsed=torch.zeros_like(key),
        clock=clock.clone(),
        key=key,
        terminated=no,
        truncated=no.clone(),
        won=no.clone(),
    )
