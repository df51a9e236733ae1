"""One environment step of many battles as one function of tensors, which compiles without graph breaks."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.randomness import draw_bits, uniforms_of_bytes
from madiff.interfaces import TimeStep

from .battle import Battle, choose
from .dynamics import loop, orders, pursue
from .features import Features, available_actions
from .rules import LOOPS_PER_STEP, Rules
from .scenarios import KILL_REWARD, REWARD_SCALE, WIN_REWARD
from .spawn import fresh

JITTER = (-1.0, 2.0)
"""Range in loops of the uniform noise on every cooldown."""
NO_OP, STOP = 0, 1


def legalised(battle: Battle, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Actions (N, E) with the illegal ones replaced by stop, or no-op for the dead; and which were illegal."""
    known = actions.clamp(0, battle.available.shape[1] - 1)
    illegal = ~battle.available.gather(1, known[:, None])[:, 0] | (known != actions)
    idle = torch.where(battle.available[:, STOP], STOP, NO_OP)
    return torch.where(illegal, idle, known), illegal


def step_function(features: Features, auto_reset: bool, battle: Battle, actions: Tensor) -> tuple[Battle, TimeStep]:
    """Play one step. actions (E, N) int64; a pure function: the battle given is left as it was."""
    rules = features.rules
    over_before = battle.terminated | battle.truncated
    actions, illegal = legalised(battle, actions.T)
    after = _played(rules, battle, actions)
    after = after if auto_reset else choose(over_before, battle, after)
    rewards = _reward(rules, battle, after) * ~over_before
    illegal_actions = illegal.sum(0) * ~over_before
    step = _time_step(features, after, rewards, illegal_actions)
    if not auto_reset:
        return after, step
    new = choose(after.terminated | after.truncated, fresh(rules, after.key, after.clock), after)
    info = step.info | {"final_observations": step.observations, "final_state": step.state}
    return new, step._replace(
        observations=features.observations(new),
        state=features.state(new),
        available_actions=features.masks(new),
        info=info,
    )


def first_step(features: Features, battle: Battle) -> TimeStep:
    """What a reset returns: no reward, nothing illegal."""
    return _time_step(features, battle, torch.zeros_like(battle.health[0]), torch.zeros_like(battle.elapsed))


def _time_step(features: Features, battle: Battle, rewards: Tensor, illegal_actions: Tensor) -> TimeStep:
    shared = rewards[:, None].repeat(1, features.rules.allies)
    info = {
        "won": battle.won,
        "battle_over": battle.terminated,
        "illegal_actions": illegal_actions,
    }
    return TimeStep(
        features.observations(battle),
        features.state(battle),
        features.masks(battle),
        shared,
        torch.zeros_like(shared),
        battle.terminated,
        battle.truncated,
        info,
    )


def _played(rules: Rules, battle: Battle, actions: Tensor) -> Battle:
    """Eight loops under one order per ally, then who has won and what is legal."""
    n = rules.allies
    targets, way = orders(rules, actions)
    low, high = JITTER
    jitter = low + (high - low) * uniforms_of_bytes(draw_bits(battle.key, battle.clock, rules.count))
    own = rules.index.expand_as(battle.target)
    now = battle._replace(target=torch.cat([targets, battle.target[n:]]), shots=own)
    now = now._replace(target=torch.cat([targets, pursue(rules, now)]))
    for k in range(LOOPS_PER_STEP):
        now = loop(rules, now, way, jitter[k], allies_first=k % 2 == 0)
    fighting = (now.health > 0) & ~rules.healer
    ours, theirs = fighting[:n].any(0), fighting[n:].any(0)
    over = ~ours | ~theirs
    elapsed = battle.elapsed + 1
    return now._replace(
        last_actions=actions,
        available=available_actions(rules, now.position, now.health),
        elapsed=elapsed,
        clock=battle.clock + 1,
        terminated=over,
        truncated=~over & (elapsed >= rules.scenario.limit),
        won=ours & ~theirs,
    )


def _reward(rules: Rules, before: Battle, after: Battle) -> Tensor:
    """|sum of the enemies' lost health and shield + 10 per kill| + 200 for winning, scaled so that R_max is 20."""
    enemies = slice(rules.allies, None)
    lost = (before.health + before.shield - after.health - after.shield)[enemies].sum(0)
    kills = ((before.health > 0) & (after.health <= 0))[enemies].sum(0)
    raw = (lost + KILL_REWARD * kills).abs() + WIN_REWARD * after.won
    return raw * (REWARD_SCALE / rules.scenario.max_reward)
