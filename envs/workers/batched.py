"""Any PettingZoo `ParallelEnv` as our `BatchedEnvironment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from madiff.interfaces import EnvironmentSpec, TimeStep, UserError

from .layout import Layout
from .pool import Pool, default_workers
from .share import Make
from .single import Joint

SEED_BITS = 31


class WorkerEnvironment:
    """Copies of an environment that knows nothing of tensors, stepped in this process or in worker processes.

    make: a function of an importable module, or a `functools.partial` of one, that makes one `ParallelEnv`;
    workers: processes to spread the copies over, 0 for none, None for one per processor unless there is one copy;
    limit: steps after which an episode is truncated, None for what the environment declares (`layout.LIMIT_NAMES`),
    else 500; preload: modules that all workers need, imported once.

    Copy i of `reset(seed)` begins with a seed made of both, so that results do not depend on the number of workers.
    `state` is the seed and the actions since; `set_state` plays them again, exact where the environment is repeatable.
    Worker processes end with `close()`, when the environment is collected, or with this process.
    """

    def __init__(
        self,
        name: str,
        scenario: str,
        make: Make,
        copies: int = 1,
        device: str | torch.device = "cpu",
        *,
        workers: int | None = None,
        limit: int | None = None,
        options: Mapping[str, Any] | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        for key, value, least in (("copies", copies, 1), ("workers", workers, 0), ("limit", limit, 1)):
            if value is not None and (not isinstance(value, int) or value < least):
                raise UserError(f"{value!r}", key, f"a whole number, {least} or more")
        self.copies, self.device = copies, torch.device(device)
        workers = default_workers(copies) if workers is None else min(workers, copies)
        self.pool = Pool(name, make, copies, workers, limit, preload)
        self.layout: Layout = self.pool.ask("layout", {0: ()})[0]
        self.spec = self._spec(name, scenario, options or {})
        self.last = self._time_step(self.pool.ask_all("look"))

    def _spec(self, name: str, scenario: str, options: Mapping[str, Any]) -> EnvironmentSpec:
        layout = self.layout
        observed, acted = layout.observation_sizes, layout.action_sizes
        return EnvironmentSpec(
            name, scenario, len(layout.agents), layout.observation_size, layout.action_size, layout.discrete,
            layout.state_size, layout.limit, dict(options),
            observation_sizes=observed if len(set(observed)) > 1 else (),
            action_sizes=acted if len(set(acted)) > 1 else (),
            observation_names=layout.observation_names,
        )  # fmt: skip

    def reset(self, seed: int) -> TimeStep:
        """Begin all episodes."""
        seeds = [np.random.SeedSequence([seed, copy]).generate_state(1)[0] for copy in range(self.copies)]
        self.last = self._time_step(self.pool.ask_all("reset", np.array(seeds) >> (32 - SEED_BITS)))
        return self.last

    def step(self, actions: Tensor) -> TimeStep:
        """Play one step of every copy that is not over."""
        self.last = self._time_step(self.pool.ask_all("step", self._checked(actions)))
        return self.last

    def _checked(self, actions: Tensor) -> np.ndarray:
        spec = self.spec
        rows = torch.as_tensor(actions).detach().cpu()
        shape = (self.copies, spec.agents) if spec.discrete else (self.copies, spec.agents, spec.action_size)
        if rows.shape != shape or rows.is_floating_point() == spec.discrete:
            raise UserError(f"shape {tuple(rows.shape)} of {rows.dtype}", "actions", f"{shape}")
        if spec.discrete and ((rows < 0) | (rows >= spec.action_size)).any():
            raise UserError("an action is out of range", "actions", f"0 to {spec.action_size - 1}")
        return rows.to(torch.int64 if spec.discrete else torch.float32).numpy()

    def _time_step(self, parts: Sequence[Joint]) -> TimeStep:
        joined = Joint(*(torch.from_numpy(np.concatenate(part)).to(self.device) for part in zip(*parts, strict=True)))
        return TimeStep(
            joined.observations,
            joined.state,
            joined.available if self.layout.discrete else None,
            joined.rewards,
            joined.costs,
            joined.terminated,
            joined.truncated,
            {"illegal_actions": joined.illegal},
        )

    @property
    def state(self) -> dict[str, Tensor]:
        """seed (copies,), steps (copies,) played since, actions (copies, longest, agent, ...), zero after the last."""
        recordings = [entry for part in self.pool.ask_all("recordings") for entry in part]
        longest = max(len(actions) for _, actions in recordings)
        padded = [np.pad(a, [(0, longest - len(a))] + [(0, 0)] * (a.ndim - 1)) for _, a in recordings]
        return {
            "seed": torch.tensor([seed for seed, _ in recordings]),
            "steps": torch.tensor([len(actions) for _, actions in recordings]),
            "actions": torch.from_numpy(np.stack(padded)),
        }

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Play such a recording again; rows may be moved between environments of one kind."""
        if set(state) != {"seed", "steps", "actions"}:
            raise UserError(f"keys {sorted(state)}", "state", ["seed", "steps", "actions"])
        lengths = {name: len(rows) for name, rows in state.items()}
        if set(lengths.values()) != {self.copies}:
            raise UserError(f"{lengths} copies", "state", [self.copies])
        steps, actions = state["steps"].tolist(), state["actions"].cpu().numpy()
        recordings = [(seed, actions[i, : steps[i]]) for i, seed in enumerate(state["seed"].tolist())]
        self.last = self._time_step(self.pool.ask_all("replay", recordings))

    def frame(self, copy: int = 0) -> np.ndarray:
        """The environment's own picture of one copy, (height, width, 3) uint8."""
        share, place = self.pool.whereabouts(copy)
        return self.pool.ask("frame", {share: (place,)})[0]

    def close(self) -> None:
        """End the worker processes; the environment cannot be used any more."""
        self.pool.close()
