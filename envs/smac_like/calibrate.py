"""Find the levels of skill at which the behaviour mixtures return what OG-MARL's data sets do.

`python -m envs.smac_like.calibrate [--scenarios 3m,2s3z] [--episodes 2000]` measures and rewrites `calibration.py`;
maps left out keep their entries. Where even the best play misses the target of good, the targets of medium and poor
shrink by the same factor, so that qualities stay apart; where the worst play exceeds a target, the worst stands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .batched import SmacLike
from .calibration import LEVELS
from .mixtures import MIXTURES, players
from .scenarios import SCENARIOS
from .scripts import Scripted

QUALITIES = tuple(MIXTURES)
OG_MARL = {
    "3m": (16.5, 10.0, 4.7),
    "8m": (16.86, 10.14, 5.28),
    "5m_vs_6m": (16.58, 12.62, 7.45),
    "2s3z": (18.32, 12.57, 6.88),
    "3s5z_vs_3s6z": (16.56, 10.69, 5.90),
}
"""Mean returns of good, medium and poor data (arXiv 2302.00521); other maps aim at 16.5, 10 and 5."""
COARSE = [round(0.1 * i, 1) for i in range(11)]
FINE = (-0.06, -0.03, 0.0, 0.03, 0.06)


def play(env: SmacLike, policy: Scripted, seed: int) -> Tensor:
    """Returns (copies,) of one battle per copy."""
    step = env.reset(seed)
    policy.reset(seed + 1, env.copies)
    returns = torch.zeros(env.copies, device=env.device)
    for _ in range(env.spec.episode_limit):
        step = env.step(policy.act(step.observations, step.available_actions))
        returns += step.rewards[:, 0]
        if (step.terminated | step.truncated).all():
            break
    return returns


def sweep(env: SmacLike, quality: str, levels: Sequence[float], seed: int) -> Tensor:
    """Mean return (len(levels),) of the quality's mixture at each level, all levels played in one batch."""
    crowd = [player for level in levels for player in players(quality, level)]
    policy = Scripted(env.scenario, crowd, env.device)
    returns = play(env, policy, seed)
    level = policy.player // (len(crowd) // len(levels))
    return torch.stack([returns[level == i].mean() for i in range(len(levels))])


def find_level(env: SmacLike, quality: str, target: float, seed: int) -> float:
    """The level whose mean return is the target: a coarse curve, then a straight line around the first crossing."""
    curve = sweep(env, quality, COARSE, seed)
    ends = list(zip(curve.tolist(), curve.tolist()[1:], strict=False))
    crossing = next((i for i, (a, b) in enumerate(ends) if min(a, b) <= target <= max(a, b)), None)
    if crossing is None:
        return COARSE[int((curve - target).abs().argmin())]
    a, b = ends[crossing]
    guess = COARSE[crossing] + 0.1 * (target - a) / (b - a)
    levels = [min(max(guess + shift, 0.0), 1.0) for shift in FINE]
    x = torch.tensor(levels, dtype=torch.float64)
    y = sweep(env, quality, levels, seed + 2).double()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    better = float(x.mean() + (target - y.mean()) / slope) if slope.abs() > 1 else guess
    return round(min(max(better, min(levels)), max(levels)), 3)


def calibrate(name: str, episodes: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """(level, mean return over fresh battles) of good, medium and poor on one map."""
    env = SmacLike(episodes, scenario=name)
    entry: dict[str, tuple[float, float]] = {}
    reachable = 1.0
    for quality, target in zip(QUALITIES, OG_MARL.get(name, (16.5, 10.0, 5.0)), strict=True):
        level = find_level(env, quality, reachable * target, seed)
        got = round(sweep(env, quality, [level], seed + 4).item(), 2)
        entry[quality] = (level, got)
        if quality == "good":
            reachable = min(1.0, got / target)
        print(f"{name:14s} {quality:7s} OG-MARL {target:5.2f}  level {level:5.3f}  return {got:5.2f}", flush=True)
    return entry


def write(levels: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Rewrite `calibration.py` in the order of the scenarios."""
    head = (
        '"""Made by `python -m envs.smac_like.calibrate`; do not edit. '
        'Per map and quality: (level, mean return it gave)."""\n\n'
        "LEVELS: dict[str, dict[str, tuple[float, float]]] = {\n"
    )
    rows = []
    for name in (name for name in SCENARIOS if name in levels):
        entry = ", ".join(f'"{quality}": {levels[name][quality]}' for quality in QUALITIES)
        rows.append(f'    "{name}": {{{entry}}},\n')
    (Path(__file__).parent / "calibration.py").write_text(head + "".join(rows) + "}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="comma-separated map names")
    parser.add_argument("--episodes", type=int, default=2000, help="battles per measurement")
    arguments = parser.parse_args()
    levels = dict(LEVELS)
    for name in arguments.scenarios.split(","):
        levels[name] = calibrate(name, arguments.episodes)
        write(levels)


if __name__ == "__main__":
    main()
