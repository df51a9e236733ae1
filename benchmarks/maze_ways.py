"""How long are the ways in a maze? `python -m benchmarks.maze_ways run=DIR [safe=NAME,NAME] [safe.KEY=VALUE]`.

Also episodes=N (100) and seed=N (0).
The ways of the player that made the data, of a planner trained on them, and of that planner under safeguards, in the
same episodes, over the shortest way that keeps the ball out of the walls and its middle out of the obstacles (by brute
force on a grid of 5 cm). A way is what was gone until the goal was reached, and what was left to its middle then;
episodes that never reach it have none. Obstacles that move are taken where they are at first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from benchmarks.maze_paths import Grid
from benchmarks.plan_time import section, words
from envs.maze.batched import GOAL_RADIUS, NAME, Maze
from envs.maze.scenarios import SCENARIOS
from madiff import build, safeguards
from madiff.build import TrainedRun
from madiff.experiment import seeding
from madiff.experiment.rollout import Rollout, rollout
from madiff.experiment.statistics import bootstrap_ci
from madiff.interfaces import Policy, UserError

DEVICE = torch.device("cpu")


def shortest(env: Maze, pairs: np.ndarray) -> np.ndarray:
    """Length of the shortest safe way between places (n, 2, 2), metres; obstacles are taken where they are at first."""
    grid = Grid(SCENARIOS[env.spec.scenario].rows)
    places = torch.as_tensor(np.stack(grid.places, -1)).to(env.dtype)
    barrier = env.obstacles.barrier(places.flatten(0, 1), torch.zeros((), dtype=env.dtype))
    safe = (barrier >= 0).all(-1).reshape(places.shape[:2]).numpy()
    return grid.lengths(grid.free & safe, pairs)


def ratios(env: Maze, outcome: Rollout) -> np.ndarray:
    """Ways over the shortest safe ones, of the recorded episodes that arrive, (n,)."""
    assert outcome.store is not None  # it was recorded
    seen = outcome.store.observations.reshape(outcome.episodes, -1, len(env.spec.observation_names)).double().numpy()
    place, goal = seen[..., :2], seen[:, :1, 4:]
    left = np.linalg.norm(place - goal, axis=-1)
    gone = np.pad(np.linalg.norm(np.diff(place, axis=1), axis=-1).cumsum(1), ((0, 0), (1, 0)))
    arrived = (left <= GOAL_RADIUS).any(1)
    first = (left <= GOAL_RADIUS).argmax(1)[arrived, None]
    way = np.take_along_axis((gone + left)[arrived], first, 1)[:, 0]
    return way / shortest(env, np.stack([place[:, 0], goal[:, 0]], 1)[arrived])


def players(run: TrainedRun, env: Maze, names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Policy]:
    """Who made the data, who was trained on them, and that one under each safeguard."""
    data = run.config.data
    found: dict[str, Policy] = {} if data.path else {f"data, {data.quality}": envs.behaviour(env, data.quality)}
    found[run.config.algo["name"]] = run.policy
    return found | {name: safeguards.safeguard(run, section(name, options)).timed for name in names}


def line(name: str, env: Maze, outcome: Rollout) -> str:
    if not (outcome.returns > 0).any():
        return f"{name:<20} never arrived"
    found = ratios(env, outcome)
    low, high = bootstrap_ci(found)
    way = f"{found.mean():.3f} [{low:.3f}, {high:.3f}] times the shortest safe way"
    arrived, through = len(found) / outcome.episodes, (outcome.costs > 0).mean()
    return f"{name:<20} {way}   arrived {arrived:>6.1%}   through an obstacle {through:>6.1%}"


def main(arguments: Sequence[str]) -> int:
    try:
        told, names, options = words(arguments, "maze_ways", ("run", "safe", "safe.OPTION", "episodes", "seed"))
        numbers = told.get("episodes", "100"), told.get("seed", "0")
        if not told.get("run") or not all(number.isdigit() for number in numbers) or not int(numbers[0]):
            asked = "a run directory, and whole numbers of episodes and of the seed, are needed"
            raise UserError(asked, "maze_ways", "run=DIR episodes=100 seed=0")
        run = build.load_run(Path(told["run"]), DEVICE, {})
        if run.spec.name != NAME:
            raise UserError(f"{told['run']} was trained in {run.spec.name}", "maze_ways run", f"a run in {NAME}")
        episodes, seed = int(numbers[0]), seeding.derive(int(numbers[1]), "evaluation")
        env = Maze(episodes, **run.spec.options)
        for name, policy in players(run, env, names, options).items():
            print(line(name, env, rollout(env, policy, seed=seeding.derive(seed, "wave", 0), record=True)), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
