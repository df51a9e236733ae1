"""The one rollout: any policy in any batched environment, for evaluation, data collection and films alike."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from madiff.data.store import EpisodeStore
from madiff.experiment import seeding
from madiff.interfaces import BatchedEnvironment, CostAware, Policy, RewardAware, TimeStep, UserError

EVER = frozenset({"won", "arrived"})  # of a step's info, (copies,) and (copies, agent) bool: whether it was ever so

Progress = Callable[[int], object]  # called with the number of episodes that have just ended


@dataclass(frozen=True, eq=False)
class Rollout:
    """Outcome of E episodes, one entry per episode.

    agent_returns, agent_costs (E, A) float64: undiscounted sums; lengths (E,) steps; terminated (E,) bool;
    won (E,) bool or None where there is no winning; arrived (E, A) bool: those who were at their goal at any time, None
    where no environment says so; illegal (E,): actions outside the mask; seeds, copies (E,): the
    seed of the environment's reset and the copy the episode ran in, which repeat it; seconds: wall clock of all.
    frames: pictures (height, width, 3) uint8 of the filmed copy, the first before any action.
    """

    agent_returns: np.ndarray
    agent_costs: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    won: np.ndarray | None
    arrived: np.ndarray | None
    illegal: np.ndarray
    seeds: np.ndarray
    copies: np.ndarray
    seconds: float
    store: EpisodeStore | None = None
    frames: list[np.ndarray] = field(default_factory=list)

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    @property
    def returns(self) -> np.ndarray:
        """(E,) team returns: mean over agents."""
        return self.agent_returns.mean(1)

    @property
    def costs(self) -> np.ndarray:
        """(E,) team costs: mean over agents."""
        return self.agent_costs.mean(1)

    def records(self) -> list[dict[str, Any]]:
        """One JSON-serialisable record per episode."""
        columns = {
            "episode": np.arange(self.episodes),
            "seed": self.seeds,
            "copy": self.copies,
            "return": self.returns,
            "agent_returns": self.agent_returns,
            "cost": self.costs,
            "length": self.lengths,
            "terminated": self.terminated,
            "illegal_actions": self.illegal,
        }
        if self.won is not None:
            columns["won"] = self.won
        if self.arrived is not None:
            columns["arrived"] = self.arrived
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    @classmethod
    def concatenate(cls, parts: Sequence[Rollout]) -> Rollout:
        """All episodes in order, with the frames of the first part."""

        def join(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        sums = ("agent_returns", "agent_costs", "lengths", "illegal")
        arrays = (*sums, *EVER, "terminated", "seeds", "copies")
        stores = [part.store for part in parts if part.store is not None]
        return cls(
            **{name: join(name) for name in arrays},
            seconds=sum(part.seconds for part in parts),
            store=EpisodeStore.concatenate(stores) if stores else None,
            frames=parts[0].frames,
        )


@torch.no_grad()
def rollout(
    env: BatchedEnvironment,
    policy: Policy,
    *,
    seed: int,
    record: bool = False,
    progress: Progress | None = None,
    film: int | None = None,
) -> Rollout:
    """Run one episode in every copy of `env` until all have ended.

    seed fixes the environment's and the policy's draws. record: keep the episodes as an EpisodeStore. film: the copy
    to take pictures of. Raises UserError if the policy's actions have the wrong shape or type, are out of range or not
    finite, or are illegal in a recording; RuntimeError if an episode outlasts the environment's own limit.
    """
    started = time.perf_counter()
    step = env.reset(seed)
    policy.reset(seeding.derive(seed, "policy"), env.copies)
    tally, tape = Tally(env), Tape(step) if record else None
    frames = [] if film is None else [env.frame(film)]
    while bool(tally.active.any()):
        if tally.steps == env.spec.episode_limit:
            raise RuntimeError(f"{env.spec.name}: an episode runs past its limit of {env.spec.episode_limit} steps")
        actions = policy.act(step.observations, step.available_actions, tally.active)
        actions = checked(torch.as_tensor(actions, device=env.device), env, tally.active)
        illegal = count_illegal(actions, step.available_actions)
        step = env.step(actions)
        if isinstance(policy, RewardAware):
            policy.receive(step.rewards)
        if isinstance(policy, CostAware):
            policy.pay(step.costs)
        if film is not None and bool(tally.active[film]):
            frames.append(env.frame(film))
        ended = tally.add(step, illegal)
        if tape is not None:
            tape.add(step, actions)
        if progress is not None and ended:
            progress(ended)
    store = None if tape is None else tape.cut(tally, env)
    return tally.outcome(seed, time.perf_counter() - started, store, frames)


def evaluate(
    make_env: Callable[[int], BatchedEnvironment],
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    copies: int = 1024,
    record: bool = False,
    progress: Progress | None = None,
    film: int | None = None,
) -> Rollout:
    """Run `episodes` episodes in waves of at most `copies`, each in the environment `make_env(copies)`.

    Wave w resets with the w-th seed derived from `seed`. film: a copy of the first wave.
    """
    if episodes < 1 or copies < 1:
        raise UserError(f"{episodes} episodes in waves of {copies}", "evaluate", "at least 1 of each")
    parts: list[Rollout] = []
    sizes = wave_sizes(episodes, copies)
    env = make_env(sizes[0])
    for wave, size in enumerate(sizes):
        env = env if env.copies == size else make_env(size)
        wave_seed = seeding.derive(seed, "wave", wave)
        picture = film if wave == 0 else None
        parts.append(rollout(env, policy, seed=wave_seed, record=record, progress=progress, film=picture))
    return Rollout.concatenate(parts)


def wave_sizes(episodes: int, largest: int) -> list[int]:
    """Full waves, then the rest."""
    full, rest = divmod(episodes, largest)
    return [largest] * full + [rest] * (rest > 0)


def write_episodes(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One JSON object per line."""
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))


def checked(actions: Tensor, env: BatchedEnvironment, active: Tensor) -> Tensor:
    """The actions, idle rows replaced by harmless ones; raises UserError if an active row cannot be executed."""
    spec = env.spec
    expected = (env.copies, spec.agents) if spec.discrete else (env.copies, spec.agents, spec.action_size)
    if tuple(actions.shape) != expected or actions.is_floating_point() == spec.discrete:
        kind = "int64" if spec.discrete else "float32"
        raise UserError(f"actions of shape {tuple(actions.shape)} and {actions.dtype}", "policy", f"{expected} {kind}")
    running = active.reshape(-1, *[1] * (actions.ndim - 1))
    if spec.discrete:
        bad, problem = (actions < 0) | (actions >= spec.action_size), f"an action outside 0 to {spec.action_size - 1}"
    else:
        bad, problem = ~torch.isfinite(actions), "an action that is NaN or infinite"
    if bool((bad & running).any()):
        agent = int((bad & running).nonzero()[0, 1])
        raise UserError(f"agent {agent} chose {problem}", "policy")
    return torch.where(bad, torch.zeros_like(actions), actions).to(torch.int64 if spec.discrete else torch.float32)


def count_illegal(actions: Tensor, available: Tensor | None) -> Tensor:
    """(copies,) actions outside the mask (copies, agent, n)."""
    if available is None:
        return torch.zeros(len(actions), dtype=torch.int64, device=actions.device)
    return (~available.gather(-1, actions[..., None])[..., 0]).sum(1)


class Tally:
    """Running sums of all copies; a copy counts until the step that ends it."""

    def __init__(self, env: BatchedEnvironment) -> None:
        n, agents, device = env.copies, env.spec.agents, env.device
        self.active = torch.ones(n, dtype=torch.bool, device=device)
        self.returns = torch.zeros(n, agents, dtype=torch.float64, device=device)
        self.costs = torch.zeros_like(self.returns)
        self.lengths = torch.zeros(n, dtype=torch.int64, device=device)
        self.illegal = torch.zeros_like(self.lengths)
        self.terminated = torch.zeros_like(self.active)
        self.ever: dict[str, Tensor] = {}  # of the running copies, what was true in any step
        self.steps = 0

    def add(self, step: TimeStep, illegal: Tensor) -> int:
        """Count one step; returns how many episodes it ended."""
        active = self.active
        self.returns += step.rewards * active[:, None]
        self.costs += step.costs * active[:, None]
        self.lengths += active
        self.illegal += illegal * active
        self.terminated |= step.terminated & active
        for name in EVER & step.info.keys():
            told = step.info[name]
            now = told & active.view(-1, *[1] * (told.dim() - 1))
            self.ever[name] = now | self.ever.get(name, False)
        self.active = active & ~(step.terminated | step.truncated)
        self.steps += 1
        return int(active.sum() - self.active.sum())

    def outcome(self, seed: int, seconds: float, store: EpisodeStore | None, frames: list[np.ndarray]) -> Rollout:
        n = len(self.active)
        return Rollout(
            agent_returns=self.returns.cpu().numpy(),
            agent_costs=self.costs.cpu().numpy(),
            lengths=self.lengths.cpu().numpy(),
            terminated=self.terminated.cpu().numpy(),
            **{name: self.ever[name].cpu().numpy() if name in self.ever else None for name in EVER},
            illegal=self.illegal.cpu().numpy(),
            seeds=np.full(n, seed),
            copies=np.arange(n),
            seconds=seconds,
            store=store,
            frames=frames,
        )


class Tape:
    """Every step of all copies, cut into episodes at the end."""

    def __init__(self, step: TimeStep) -> None:
        self.observed: list[dict[str, Tensor]] = []
        self.taken: list[dict[str, Tensor]] = []
        self.observe(step)

    def observe(self, step: TimeStep) -> None:
        entries = {"observations": step.observations, "available_actions": step.available_actions, "state": step.state}
        present = {k: v for k, v in entries.items() if v is not None and 0 not in v.shape}
        self.observed.append({name: value.to("cpu", copy=True) for name, value in present.items()})

    def add(self, step: TimeStep, actions: Tensor) -> None:
        taken = {"actions": actions, "rewards": step.rewards, "costs": step.costs}
        self.taken.append({name: value.to("cpu", copy=True) for name, value in taken.items()})
        self.observe(step)

    def cut(self, tally: Tally, env: BatchedEnvironment) -> EpisodeStore:
        lengths, terminated = tally.lengths.cpu(), tally.terminated.cpu()
        return EpisodeStore(
            **flat(self.observed, lengths + 1),
            **flat(self.taken, lengths),
            terminated=terminated,
            truncated=~terminated,
            lengths=lengths,
            action_size=env.spec.action_size,
            provenance={"env": env.spec.name, "scenario": env.spec.scenario},
        )


def flat(steps: list[dict[str, Tensor]], lengths: Tensor) -> dict[str, Tensor]:
    """Join per-step (copies, ...) entries into (sum of lengths, ...), episode after episode."""
    kept = torch.arange(len(steps)) < lengths[:, None]
    return {name: torch.stack([step[name] for step in steps], dim=1)[kept] for name in steps[0]}
