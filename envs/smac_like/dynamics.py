"""What happens in an engine loop of all battles: move, shoot, heal, recover; and whom everybody is after.

Targets are chosen once a step on both sides: the allies' by their orders, the enemies' by their script. So neither side
reacts faster than the other.
Both sides shoot in turn within a loop, the allies first in even loops: whoever falls to the first volley does not
answer, so no two units kill each other at once. Within a volley the shots land in unit order, and a unit whose target
has already fallen to earlier shots holds its fire.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .battle import Battle
from .features import offsets
from .rules import FAR, Rules
from .units import (
    ENERGY_MAX,
    ENERGY_REGENERATION,
    HEALING,
    HEALTH_PER_ENERGY,
    SHIELD_DELAY,
    SHIELD_REGENERATION,
)
from .volley import volley

STAND_INSIDE = 0.01
"""Units stop this far inside their reach, so that rounding leaves them in range."""
LEAST_LENGTH = 1e-6


def orders(rules: Rules, actions: Tensor) -> tuple[Tensor, Tensor]:
    """From legal actions (N, E) the allies' targets (N, E), their own index for none, and their way (2, N, E)."""
    n = rules.allies
    slot = actions - 6
    first = torch.where(rules.healer[:n], 0, n) if rules.has_healers else n
    target = torch.where(slot >= 0, slot + first, rules.index[:n])
    return target, rules.way_of_action[:, actions]


def loop(rules: Rules, battle: Battle, ally_way: Tensor, jitter: Tensor, allies_first: bool) -> Battle:
    """Advance by one engine loop. ally_way (2, N, E): where allies without a target walk; jitter (U, E) in loops."""
    target = battle.target
    standing = where_standing(rules, battle)
    apart, distance = offsets(standing, rules.count)
    there = standing.gather(1, target.expand(2, -1, -1))
    reach = rules.within_reach.expand_as(distance).gather(1, target[:, None])[:, 0]
    hunting = (target != rules.index) & (there[0] < FAR / 2)
    idle_way = torch.cat([ally_way, rules.march - battle.position[:, rules.allies :]], 1)
    way = torch.where(hunting, there - battle.position, idle_way)
    dx, dy = way.unbind(0)
    length = torch.sqrt(dx * dx + dy * dy)
    in_reach = hunting & (length <= reach)

    stride = torch.minimum(torch.relu(length - (reach - STAND_INSIDE) * hunting), rules.speed)
    move = way * (stride / length.clamp(min=LEAST_LENGTH)) + pushed(rules, apart, distance)
    position = torch.clamp(battle.position + move * (battle.health > 0), rules.low, rules.high)
    now = battle._replace(position=position)
    return recovered(rules, exchanged(rules, now, in_reach, standing, jitter, allies_first), in_reach)


def pushed(rules: Rules, apart: Tensor, distance: Tensor) -> Tensor:
    """Displacements (2, U, E) that part overlapping units of one layer: each yields half, one that cannot move none."""
    overlap = torch.relu(rules.touch - distance) * rules.push / distance.clamp(min=LEAST_LENGTH)
    return -(apart * overlap).sum(2)


def where_standing(rules: Rules, battle: Battle) -> Tensor:
    """Positions (2, U, E) with the dead beyond every range: comparisons of distances need not know who lives."""
    return torch.where(battle.health > 0, battle.position, rules.far)


def pursue(rules: Rules, battle: Battle) -> Tensor:
    """The enemies' targets (M, E), their own index for none.

    A target is kept while it is in weapon range, or seen and attacking back; else the nearest visible ally by edges is
    taken, healers before fighters. Healers go after the hurt comrade with the least part of its health left.
    """
    n = rules.allies
    distance = offsets(where_standing(rules, battle), rules.count)[1]
    far, old = distance[n:, :n], battle.target[n:]
    seen = far <= rules.enemy_scan
    back = battle.target[:n] == rules.enemy_index[:, None]
    worth = (far <= rules.enemy_reach) | (back & seen)
    keep = (old < n) & worth.gather(1, old.clamp(max=n - 1)[:, None])[:, 0]
    best = least(rules, (far - rules.enemy_preference).masked_fill(~seen, torch.inf))
    target = torch.where(keep, old, torch.where(seen.any(1), best, rules.enemy_index))
    return torch.where(rules.enemy_healer, patients(rules, battle, distance), target) if rules.has_healers else target


def patients(rules: Rules, battle: Battle, distance: Tensor) -> Tensor:
    """The comrade (M, E) each enemy would heal: the living fighter with least of its health left, then the nearest."""
    n = rules.allies
    unfit = (battle.health[n:] <= 0) | rules.enemy_healer
    need = battle.health[n:] / rules.enemy_health + distance[n:, n:] / FAR
    return torch.where(unfit.all(0), rules.enemy_index, least(rules, need.masked_fill(unfit, torch.inf)) + n)


def least(rules: Rules, key: Tensor) -> Tensor:
    """Index of the first least entry along axis 1; far faster than argmin along an axis that is not the last."""
    index = rules.index[: key.shape[1]]
    return torch.where(key == key.amin(1, keepdim=True), index, rules.count).amin(1)


def exchanged(
    rules: Rules, battle: Battle, in_reach: Tensor, standing: Tensor, jitter: Tensor, allies_first: bool
) -> Battle:
    """Two volleys, the second without those that fell to the first; whoever fired reloads, suicides die."""
    sizes = [rules.allies, rules.enemies]
    ready = in_reach & (battle.cooldown <= 0) & rules.armed
    if rules.some_cannot_hurt:
        ready = ready & rules.hits[rules.index, battle.target, 0]
    fired, target = list(ready.split_with_sizes(sizes)), battle.target.split_with_sizes(sizes)
    health, shield = list(battle.health.split_with_sizes(sizes)), list(battle.shield.split_with_sizes(sizes))
    for a, b in ((0, 1), (1, 0)) if allies_first else ((1, 0), (0, 1)):
        side, shooting = rules.sides[a], fired[a] & (health[a] > 0)
        fired[a], health[b], shield[b] = volley(rules, side, shooting, target[a], standing, health[b], shield[b])
        if rules.has_suicides:
            health[a] = health[a] * ~(fired[a] & side.suicides)
    shots, after = torch.cat(fired), torch.cat(health)
    now = battle._replace(
        health=after,
        cooldown=torch.relu(torch.where(shots, rules.cooldown + jitter, battle.cooldown) - 1),
        shots=torch.where(shots, battle.target, battle.shots),
    )
    if not rules.shields:
        return now
    guarded = torch.cat(shield)
    hurt = (after < battle.health) | (guarded < battle.shield)
    return now._replace(shield=guarded, calm=(battle.calm + 1) * ~hurt)


def recovered(rules: Rules, battle: Battle, in_reach: Tensor) -> Battle:
    """Healing, and the regeneration of energy, shields and Zerg health, of the living."""
    health, shield, energy = battle.health, battle.shield, battle.energy
    if rules.has_healers:
        health, energy = _heal(rules, battle, in_reach)
    alive = health > 0
    if rules.regenerates:
        health = torch.minimum(health + rules.regeneration * alive, rules.health)
    if rules.shields:
        rested = alive & (battle.calm > SHIELD_DELAY)
        shield = torch.minimum(shield + SHIELD_REGENERATION * rested, rules.shield)
    return battle._replace(health=health, shield=shield, energy=energy)


def _heal(rules: Rules, battle: Battle, in_reach: Tensor) -> tuple[Tensor, Tensor]:
    """Each healer in reach gives its target up to 9 health a second for a third of that in energy."""
    alive = battle.health > 0
    missing = ((rules.health - battle.health) * alive).gather(0, battle.target)
    give = torch.minimum(missing, (battle.energy * HEALTH_PER_ENERGY).clamp(max=HEALING))
    give = give * (in_reach & rules.healer & alive)
    health = torch.minimum(battle.health.scatter_add(0, battle.target, give), rules.health)
    energy = battle.energy - give / HEALTH_PER_ENERGY + ENERGY_REGENERATION * (alive & rules.healer)
    return health, energy.clamp(max=ENERGY_MAX)
