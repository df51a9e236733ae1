"""The shots of one side at one instant: shields, armour, bonus damage, splash."""

from __future__ import annotations

import torch
from torch import Tensor

from .rules import Rules, Side
from .units import LEAST_DAMAGE, SPLASH_LINE, SPLASH_RADIUS


def volley(
    rules: Rules,
    side: Side,
    shooting: Tensor,
    target: Tensor,
    standing: Tensor,
    health: Tensor,
    shield: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Who fires (a, E) of those shooting, and the victims' health and shield (v, E) after it.

    shooting (a, E) bool; target (a, E) unit indices; standing (2, U, E) positions; health, shield (v, E).
    Shots land in unit order, and a unit whose target has fallen to the shots before its own holds its fire. (The
    splash of one that holds its fire still counts among those shots: on maps with splash, a loop too cautious.)
    """
    aim = target[:, None] == side.victim_index
    strikes = aim & shooting[:, None]
    if rules.splashes:
        strikes = (aim | caught(side, target, standing)) & shooting[:, None]
    if not rules.shields:
        loss = strikes * side.net_damage
        fires = shooting & ~((earlier(loss) >= health) & aim).any(1)
        return fires, torch.relu(health - (loss * fires[:, None]).sum(0)), shield
    blocked, loss = through_shields(rules, side, strikes, shield)
    fires = shooting & ~((earlier(blocked + loss) >= health + shield) & aim).any(1)
    loss, blocked = (loss * fires[:, None]).sum(0), (blocked * fires[:, None]).sum(0)
    return fires, torch.relu(health - loss), torch.relu(shield - blocked)


def earlier(amount: Tensor) -> Tensor:
    """For each shooter the sum over those before it: (a, v, E) -> (a, v, E)."""
    return amount.cumsum(0) - amount


def through_shields(rules: Rules, side: Side, strikes: Tensor, shield: Tensor) -> tuple[Tensor, Tensor]:
    """What each shooter takes from each victim's shield and health (a, v, E); armour counts once the shield is gone."""
    left = shield - earlier(strikes * (side.damage * side.attacks))
    blocked, loss = torch.zeros_like(left), torch.zeros_like(left)
    for attack in range(rules.most_attacks):
        blow = strikes * (side.damage * (side.attacks > attack))
        held = torch.minimum(torch.relu(left), blow)
        through = blow - held
        blocked = blocked + held
        loss = loss + (through - side.armour).clamp(min=LEAST_DAMAGE) * (through > 0)
        left = left - blow
    return blocked, loss


def caught(side: Side, target: Tensor, standing: Tensor) -> Tensor:
    """The victims (a, v, E) whose edge the splash of a shot at the target reaches.

    A suicide bursts around itself; a line lies across the line of fire, through the target.
    """
    here, there = standing[:, side.shooters], standing.gather(1, target.expand(2, -1, -1))
    victims, radius = standing[:, None, side.victims], side.victim_radius
    around = length(victims - here[:, :, None]) <= SPLASH_RADIUS + radius
    fire = there - here
    fire = (fire / length(fire).clamp(min=1e-6))[:, :, None]
    apart = victims - there[:, :, None]
    along = (apart * fire).sum(0).abs()
    across = (apart[1] * fire[0] - apart[0] * fire[1]).abs()
    half_length, half_width = SPLASH_LINE
    swept = (along <= half_width + radius) & (across <= half_length + radius)
    return ((side.suicides[:, None] & around) | (side.line & swept)) & side.hits


def length(way: Tensor) -> Tensor:
    """Euclidean length over the first axis, exactly rounded step by step."""
    x, y = way.unbind(0)
    return torch.sqrt(x * x + y * y)
