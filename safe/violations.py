"""How safe plans and executed episodes are: barriers at waypoints and between them, and plans that are torn apart.

Both are trajectories: points (n, time, agent, D) in real units, with a mask of the steps there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from madiff.data.store import EpisodeStore, ranges
from madiff.interfaces import UserError
from safe.sets import SafeSet, Time

if TYPE_CHECKING:
    from madiff.interfaces import PlanLayout

TRAP = 0.2  # of normalised positions (released code of arXiv 2509.24243)


@dataclass(frozen=True)
class Violations:
    """Safety of n trajectories.

    least (n, sets): smallest barrier value of each set over waypoints and agents; infinite where it says nothing.
    least_between (n, sets): the same over points on the segments between waypoints, ends included.
    unsafe (n,): share of (waypoint, agent) with a negative barrier. least_clamped, unsafe_clamped (n,): the smallest
    barrier over all sets, and the number of points below zero, among points that were held and so left out above.
    NaN counts as unsafe, with a barrier of minus infinity.
    """

    least: Float[Tensor, "n sets"]
    least_between: Float[Tensor, "n sets"]
    unsafe: Float[Tensor, " n"]
    least_clamped: Float[Tensor, " n"]
    unsafe_clamped: Int64[Tensor, " n"]

    def summary(self) -> dict[str, float]:
        """Means over trajectories, as plain numbers; empty where there is no trajectory or no set."""
        if not self.least.numel():
            return {}
        worst, between = self.least.amin(1), self.least_between.amin(1)
        return {
            "least_barrier": float(worst.min()),
            "least_barrier_mean": float(worst.mean()),
            "least_barrier_between": float(between.min()),
            "violating": float((worst < 0).double().mean()),
            "violating_between": float((between < 0).double().mean()),
            "violating_points": float(self.unsafe.double().mean()),
            "clamped_unsafe": float(self.unsafe_clamped.double().mean()),
        }


def measure(
    points: Float[Tensor, "n T agent D"],
    sets: Sequence[SafeSet],
    time: Time = 0.0,
    valid: Bool[Tensor, "n T"] | None = None,
    clamped: Bool[Tensor, "#n #T #agent"] | None = None,
    between: int = 4,
) -> Violations:
    """Barriers of trajectories (n, time, agent, D) in real units.

    time: of each waypoint, broadcastable to (n, time, agent); valid (n, time) bool: the steps there are; clamped
    (n, time, agent) bool: held points, counted apart; between >= 1: parts that each segment is cut into.
    """
    if between < 1:
        raise UserError(f"{between} parts of a segment", "safe.violations.between", "1 or more")
    n, steps, agents = points.shape[:3]
    there = torch.ones(n, steps, dtype=torch.bool, device=points.device) if valid is None else valid
    there = there[..., None].expand(n, steps, agents)
    held = torch.zeros_like(there) if clamped is None else clamped.expand_as(there) & there
    free = there & ~held
    time = torch.as_tensor(time, dtype=points.dtype, device=points.device).expand(n, steps, agents)
    b = _barriers(points, sets, time)
    least = _least(b, free)
    segments = _between(points, sets, time, free, between)
    any_b = b.amin(-1) if len(sets) else torch.full_like(time, torch.inf)
    count = free.sum((1, 2)).clamp(min=1)
    return Violations(
        least, torch.minimum(least, segments), ((any_b < 0) & free).sum((1, 2)) / count,
        torch.where(held, any_b, torch.inf).amin((1, 2)), ((any_b < 0) & held).sum((1, 2)),
    )  # fmt: skip


def _barriers(points: Tensor, sets: Sequence[SafeSet], time: Tensor) -> Tensor:
    """(n, time, agent, sets): the smallest row of each set; minus infinity for NaN."""
    if not sets:
        return points.new_zeros(*points.shape[:-1], 0)
    nothing = torch.full_like(time, torch.inf)[..., None]
    rows = [torch.cat([nothing, s.b(points, time)], dim=-1).amin(-1) for s in sets]
    return torch.stack(rows, dim=-1).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _least(b: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept[..., None], b, torch.inf).amin((1, 2))


def _between(points: Tensor, sets: Sequence[SafeSet], time: Tensor, free: Tensor, parts: int) -> Tensor:
    """Smallest barriers inside of the segments between two free waypoints, (n, sets)."""
    least = points.new_full((len(points), len(sets)), torch.inf)
    kept = free[:, 1:] & free[:, :-1]
    for part in range(1, parts):
        share = part / parts
        middle = torch.lerp(points[:, :-1], points[:, 1:], share)
        when = torch.lerp(time[:, :-1], time[:, 1:], share)
        if points.shape[1] > 1:
            least = torch.minimum(least, _least(_barriers(middle, sets, when), kept))
    return least


def trapped(
    positions: Float[Tensor, "n T agent d"], threshold: float = TRAP, valid: Bool[Tensor, "n T"] | None = None
) -> Bool[Tensor, " n"]:
    """(n,) bool: whether some agent's consecutive waypoints are further apart than the threshold.

    positions (n, time, agent, d), scaled to [-1, 1] over the data; the trap rate is the mean. valid (n, time) bool.
    """
    jumps = positions.diff(dim=1).norm(dim=-1) > threshold
    if valid is not None:
        jumps = jumps & (valid[:, 1:] & valid[:, :-1])[..., None]
    return jumps.any(-1).any(-1)


def of_plans(
    plans: Float[Tensor, "n T agent feature"], sets: Sequence[SafeSet], layout: PlanLayout,
    positions: Sequence[int] = (), start: Time = 0.0, known: Tensor | None = None, between: int = 4,
) -> dict[str, Any]:  # fmt: skip
    """Violations and trap rate of normalised plans (n, time, agent, feature), from the waypoint now on.

    sets: on the layout's features; positions: the features that a trap is seen in, none to leave it out; start: the
    time now; known (n, time, agent, feature) bool: what in-painting held. Returns {"violations": `Violations`, and
    "trapped": (n,) bool where positions are given}.
    """
    now = layout.history
    points = layout.denormalize(plans)[:, now:]
    steps = torch.arange(points.shape[1], device=plans.device, dtype=points.dtype)[:, None] * layout.dt
    time = (start[:, None, None] if isinstance(start, Tensor) and start.ndim else start) + steps
    clamped = None
    if known is not None and sets:
        spoken = sorted({d for s in sets for d in s.dimensions or range(plans.shape[-1])})
        clamped = known.expand(plans.shape)[:, now:, :, spoken].any(-1)
    found: dict[str, Any] = {"violations": measure(points, sets, time, clamped=clamped, between=between)}
    if positions:
        # -1 and 1 are the ends of the data, whether the normaliser is linear between them or not.
        low, high = (layout.denormalize(torch.full_like(plans[:1, :1], end)) for end in (-1.0, 1.0))
        reach = ((high - low) / 2).clamp(min=torch.finfo(plans.dtype).tiny)
        found["trapped"] = trapped((points / reach)[..., list(positions)])
    return found


def of_rollouts(
    store: EpisodeStore, sets: Sequence[SafeSet], dt: float = 1.0, between: int = 1
) -> Violations:  # fmt: skip
    """Violations of executed episodes; sets are on the dimensions of the observations. dt: between two steps."""
    lengths = store.lengths + 1
    longest = int(lengths.max()) if store.episodes else 0
    valid = torch.arange(longest) < lengths[:, None]
    rows = ranges(store.offsets + torch.arange(store.episodes), lengths)
    points = store.observations.new_zeros(store.episodes, longest, *store.observations.shape[1:])
    points[valid] = store.observations[rows]
    steps = torch.arange(longest, dtype=points.dtype)[:, None] * dt
    return measure(points, sets, steps, valid, between=between)
