"""Tiny problems and learners that the tests of the team methods share."""

import torch

from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec

CPU = torch.device("cpu")
AGENTS, OBSERVATION, ACTIONS, STATE = 3, 4, 5, 6


def spec(discrete=True, state=True, sizes=()):
    return EnvironmentSpec(
        "toy", "toy", AGENTS, OBSERVATION, ACTIONS, discrete, STATE if state else 0, 12, action_sizes=sizes
    )  # fmt: skip


def store(discrete=True, state=True, masks=True, episodes=6):
    """Random episodes of 3, 4, ... steps that terminate and are truncated by turns."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(range(3, 3 + episodes)):
        actions = torch.randint(ACTIONS, (length, AGENTS), generator=generator)
        available = torch.rand(length + 1, AGENTS, ACTIONS, generator=generator) < 0.5
        available[:-1].scatter_(-1, actions[..., None], True)
        available[-1, :, 0] = True
        row = {
            "observations": torch.rand(length + 1, AGENTS, OBSERVATION, generator=generator),
            "actions": actions,
            "rewards": torch.rand(length, AGENTS, generator=generator),
            "terminated": number % 2 == 0,
            "truncated": number % 2 == 1,
        }
        if not discrete:
            row["actions"] = torch.rand(length, AGENTS, ACTIONS, generator=generator) * 2 - 1
        if discrete and masks:
            row["available_actions"] = available
        if state:
            row["state"] = torch.rand(length + 1, STATE, generator=generator)
        rows.append(row)
    return EpisodeStore.from_arrays(rows)


def learner(method, discrete=True, state=True, masks=True, sizes=(), **options):
    """A small learner and its data."""
    config = method.Config(**{"width": 16, "batch_size": 16, **options})
    made = method.make(config, spec(discrete, state, sizes), CPU, 0)
    return made, made.batches(store(discrete, state, masks))


def batch_of(source, seed=0):
    return source.sample(torch.Generator().manual_seed(seed))


def forward_returns(rewards, terminated, following, valid, discount, decay):
    """TD(lambda) of one sequence as the weighted sum of all its n-step returns (Sutton and Barto, eq. 12.3)."""
    steps = int(valid.sum())
    results = []
    for t in range(steps):
        n_step = []
        for n in range(1, steps - t + 1):
            total = sum(discount**k * float(rewards[t + k]) for k in range(n))
            if not terminated[t + n - 1]:
                total += discount**n * float(following[t + n - 1])
            n_step.append(total)
        weights = [(1 - decay) * decay**k for k in range(len(n_step) - 1)] + [decay ** (len(n_step) - 1)]
        results.append(sum(w * g for w, g in zip(weights, n_step, strict=True)))
    return torch.tensor(results)
