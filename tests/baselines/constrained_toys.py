"""Tiny constrained problems that the tests of the safe baselines share."""

from dataclasses import replace

import torch

from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec
from tests.baselines import toys
from tests.baselines.toys import CPU

STEPS = 5


def store(discrete=False, masks=True, episodes=6, truncated=False):
    """Random episodes of three agents; every agent's step costs 1 with probability 0.4."""
    made = toys.store(discrete, state=False, masks=masks, episodes=episodes)
    generator = torch.Generator().manual_seed(1)
    costs = (torch.rand(made.costs.shape, generator=generator) < 0.4).float()
    ends = {"terminated": torch.zeros_like(made.terminated), "truncated": torch.ones_like(made.truncated)}
    return replace(made, costs=costs, **(ends if truncated else {}))


def learner(method, discrete=False, sizes=(), truncated=False, **options):
    """A small learner and its data."""
    config = method.Config(**{"width": 16, "batch_size": 16, "cost_limit": 5.0, **options})
    made = method.make(config, toys.spec(discrete, state=False, sizes=sizes), CPU, 0)
    data = store(discrete, truncated=truncated)
    if sizes:  # what is padding is 0 in recorded actions
        real = torch.arange(toys.ACTIONS) < torch.tensor(sizes)[:, None]
        data = replace(data, actions=data.actions * real)
    return made, made.batches(data)


def walk_spec():
    return EnvironmentSpec("walk", "walk", 1, 2, 1, False, 0, STEPS)


def walk_data(episodes=1500):
    """Five steps; an action above 0 costs 1, and pays (1 + a) / 2 times what the observation says.

    Every episode is as reckless throughout as its player: costly with probability 0.3 to 1.
    """
    generator = torch.Generator().manual_seed(0)
    worth = torch.rand(episodes, STEPS + 1, 1, 1, generator=generator)
    clock = torch.linspace(0, 1, STEPS + 1)[:, None, None].expand_as(worth)
    reckless = 0.3 + 0.7 * torch.rand(episodes, 1, generator=generator)
    sign = torch.where(torch.rand(episodes, STEPS, generator=generator) < reckless, 1.0, -1.0)
    actions = (0.6 * sign + 0.2 * torch.randn(episodes, STEPS, generator=generator)).clamp(-1, 1)[..., None, None]
    rewards, costs = walk_pay(actions, worth[:, :-1])
    rows = zip(torch.cat([worth, clock], -1), actions, rewards, costs, strict=True)
    return EpisodeStore.from_arrays(
        [{"observations": o, "actions": a, "rewards": r, "costs": c, "terminated": True} for o, a, r, c in rows]
    )  # fmt: skip


def walk_pay(actions, worth):
    """Rewards and costs (..., agent) of actions (..., agent, 1) where the observation offers worth (..., agent, 1)."""
    return (worth * (1 + actions) / 2)[..., 0], (actions > 0).float()[..., 0]


def walk(policy, episodes=400, seed=0):
    """Mean return and mean cost of a policy's episodes."""
    generator = torch.Generator().manual_seed(99)
    worth = torch.rand(STEPS + 1, episodes, 1, 1, generator=generator)
    policy.reset(seed=seed, n=episodes)
    gained, spent = torch.zeros(episodes), torch.zeros(episodes)
    for step in range(STEPS):
        clock = torch.full_like(worth[step], step / STEPS)
        actions = policy.act(torch.cat([worth[step], clock], -1), None)
        rewards, costs = walk_pay(actions, worth[step])
        gained, spent = gained + rewards[:, 0], spent + costs[:, 0]
        if hasattr(policy, "receive"):
            policy.receive(rewards)
        if hasattr(policy, "pay"):
            policy.pay(costs)
    return float(gained.mean()), float(spent.mean())
