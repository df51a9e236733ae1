"""Projection of points onto the safe side of all sets: batched, bounded, differentiable, with fixed iteration counts.

One set: its exact nearest point (closed forms; Newton on one unknown for curves). Several convex sets: Dykstra's
algorithm, which ends in the nearest common point. Otherwise the safe points are not convex: sweeps over the sets,
then steps to the nearest point under the two tightest rows of the sets' linearisations. Outside of a convex obstacle
the linearisation is cautious, so each such step is safe for the rows it sees; of all points met the least unsafe, and
of the safe ones the nearest, is kept. Pairwise distances are met by sweeps over disjoint pairs of agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe import two_rows
from safe.batches import where_needed
from safe.constants import like
from safe.distance import Distance
from safe.sets import Obstacles, Rows, SafeSet, Time

DYKSTRA = 40  # rounds over all sets
SWEEPS = 3
REFINEMENTS = 2
PAIR_SWEEPS = 32
PHASES = 8  # of pair sweeps; after each, only teams that are not safe yet go on
REACHES = (1.0, 2.0)  # of the starts aside, in lengths of the step that the deepest barrier asks for


@dataclass(frozen=True)
class ProjectionInfo:
    """What a projection did, per point (...).

    feasible: whether all barriers reach the margin now; violation_before, violation_after: how far the worst barrier
    falls short of the margin, in its own units, 0 where none does; iterations: rounds over the sets.
    """

    feasible: Bool[Tensor, "*points"]
    violation_before: Float[Tensor, "*points"]
    violation_after: Float[Tensor, "*points"]
    iterations: int


def project(
    points: Float[Tensor, "*points D"],
    sets: Sequence[SafeSet],
    margin: float = 0.0,
    time: Time = 0.0,
    movable: Bool[Tensor, "*#points"] | None = None,
) -> tuple[Float[Tensor, "*points D"], ProjectionInfo]:
    """Move points (..., D), or (..., agent, D) with pairwise distances, to where every barrier is at least `margin`.

    Real units, float32 or float64. Points that are safe come back bit for bit, and so do those that are not `movable`
    (bool, (...)). time: of each point, for sets that move. Sets that cannot hold together give a point that violates
    little, and the flag; a point that is NaN stays so and is not feasible; neither touches its neighbours.
    Gradients flow to points and are exact for a single set, convex sets, and obstacles that do not touch.
    """
    pairs = [s for s in sets if isinstance(s, Distance)]
    if points.ndim == 1 + bool(pairs):  # one point, or one team
        movable = None if movable is None else movable[None]
        found, info = project(points[None], sets, margin, time, movable)
        alone = (info.feasible[0], info.violation_before[0], info.violation_after[0])
        return found[0], ProjectionInfo(*alone, info.iterations)
    before = violation(points, sets, margin, time)
    if not sets:
        return points, ProjectionInfo(before == 0, before, before, 0)
    alone = [s for s in sets if not isinstance(s, Distance)]

    def solve(points: Tensor, time: Time, movable: Tensor | None) -> Tensor:
        if pairs:
            return _with_pairs(points, alone, pairs, margin, time, movable)
        found = _alone(points, alone, margin, time)
        return found if movable is None else torch.where(movable[..., None], found, points)

    unsafe = before > 0
    found = where_needed(solve, unsafe.any(-1) if pairs else unsafe, points, points, time, movable)
    iterations = PAIR_SWEEPS if pairs else _rounds_alone(alone)
    after = violation(found, sets, margin, time)
    return found, ProjectionInfo(after <= tolerance(points), before, after, iterations)


def violation(
    points: Float[Tensor, "*points D"], sets: Sequence[SafeSet], margin: float = 0.0, time: Time = 0.0
) -> Float[Tensor, "*points"]:
    """How far the worst barrier falls short of the margin (...), 0 where none does; NaN for points that are NaN."""
    return (margin - least_barrier(points, sets, time)).clamp(min=0)


def least_barrier(
    points: Float[Tensor, "*points D"], sets: Sequence[SafeSet], time: Time = 0.0
) -> Float[Tensor, "*points"]:
    """The smallest barrier value of all sets (...); infinite where no set says anything."""
    nothing = points.sum(-1, keepdim=True) * 0 + torch.inf
    return torch.cat([nothing, *(s.b(points, time) for s in sets)], dim=-1).amin(-1)


def tolerance(points: Tensor) -> float:
    """What counts as rounding of a barrier: 1e-4 in float32, 1e-9 in float64."""
    return 1e-9 if points.dtype == torch.float64 else 1e-4


def _rounds_alone(sets: Sequence[SafeSet]) -> int:
    if len(sets) == 1 and not isinstance(sets[0], Obstacles):
        return 1
    return (DYKSTRA if all(s.convex for s in sets) else SWEEPS) + 2 * REFINEMENTS


def _alone(points: Tensor, sets: Sequence[SafeSet], margin: float, time: Time) -> Tensor:
    """Points that no set ties to each other."""
    if len(sets) == 1 and not isinstance(sets[0], Obstacles):
        return sets[0].project(points, margin, time)
    once, movers = _round(points, sets, margin, time)
    again = (movers > 1) | (violation(once, sets, margin, time) > 0)  # elsewhere one set moved the point: exact
    together = _dykstra if all(s.convex for s in sets) else _from_many_starts
    return where_needed(
        lambda points, once, time: together(points, once, sets, margin, time), again, once, points, once, time
    )


def _together(points: Tensor, best: Tensor, sets: Sequence[SafeSet], margin: float, time: Time) -> Tensor:
    """Points that several sets move, from a first answer `best`."""
    for _ in range(SWEEPS - 1):
        best = _settle(best, sets, margin, time)
    return _refined(points, best, sets, margin, time)


def _refined(points: Tensor, best: Tensor, sets: Sequence[SafeSet], margin: float, time: Time) -> Tensor:
    """The best of an answer and what the rows that are tight there make of it, again and again."""
    for _ in range(REFINEMENTS):
        found = _tightest(points, best, sets, margin, time)
        best = _better(points, best, _settle(found, sets, margin, time), sets, margin, time)
    return best


def _from_many_starts(points: Tensor, once: Tensor, sets: Sequence[SafeSet], margin: float, time: Time) -> Tensor:
    """Points among obstacles that touch: the best answer from `once` and from aside, along every axis both ways."""
    rows = [s.linearise(points, time) for s in sets]
    wanted = torch.cat([(margin - r.b) / r.gradient.norm(dim=-1) for r in rows], dim=-1).amax(-1, keepdim=True)
    d = points.shape[-1]
    ways = [tuple(sign * reach * (i == j) for j in range(d)) for reach in REACHES for sign in (1, -1) for i in range(d)]
    ways = like(tuple(ways), points).view(-1, *(1,) * (points.ndim - 1), d)
    starts = torch.cat([once[None], points + wanted * ways])
    answers = _together(points.expand(starts.shape), starts, sets, margin, time)
    with torch.no_grad():
        worse = (violation(answers, sets, margin, time) - tolerance(points)).clamp(min=0)
        best = (worse / tolerance(points) ** 2 + (answers - points).norm(dim=-1)).argmin(0)
    return answers.gather(0, best[None, ..., None].expand(1, *points.shape))[0]


def _round(points: Tensor, sets: Sequence[SafeSet], margin: float, time: Time) -> tuple[Tensor, Tensor]:
    """The exact nearest point of one set after the other, and how many of them moved it (...)."""
    movers = torch.zeros_like(points[..., 0], dtype=torch.int64)
    for s in sets:
        moved = s.project(points, margin, time)
        points, movers = moved, movers + (moved != points).any(-1)
    return points, movers


def nearly_project(
    points: Float[Tensor, "*points D"], sets: Sequence[SafeSet], margin: float = 0.0, time: Time = 0.0
) -> Float[Tensor, "*points D"]:
    """A cheap step in place of `project` where it is repeated: safe points stay, others leave each set in turn.

    Convex sets and pairwise distances as in `project`; obstacles by their linearisation, a little further than needed.
    """
    points = _settle(points, [s for s in sets if not isinstance(s, Distance)], margin, time)
    for s in sets:
        points = s.sweep(points, margin) if isinstance(s, Distance) else points
    return points


def _settle(points: Tensor, sets: Sequence[SafeSet], margin: float, time: Time) -> Tensor:
    """One cheap round: obstacles by a step that their linearisation asks for, convex sets exactly."""
    for s in sets:
        points = s.project(points, margin, time) if s.convex else _step_out(points, s, margin, time)
    return points


def _step_out(points: Tensor, obstacle: SafeSet, margin: float, time: Time) -> Tensor:
    """As far as the linearisation at the points says, which is far enough (b is convex)."""
    return push_out(points, [obstacle.linearise(points, time)], margin + tolerance(points) / 10)


def push_out(
    points: Float[Tensor, "*points D"], rows: Sequence[Rows], margin: float,
    seen_from: Float[Tensor, "*#points D"] | None = None,
) -> Float[Tensor, "*points D"]:  # fmt: skip
    """Points moved along the gradient of their deepest barrier until its linearisation reaches the margin.

    rows: of sets that no pair of agents shares, linearised at `seen_from`, else at the points themselves.
    """
    b, gradient = torch.cat([r.b for r in rows], dim=-1), torch.cat([r.gradient for r in rows], dim=-2)
    if seen_from is not None:
        b = b + (gradient * (points - seen_from)[..., None, :]).sum(-1)
    missing, deepest = (margin - b).max(-1, keepdim=True)
    gradient = gradient.gather(-2, deepest[..., None].expand(*deepest.shape, points.shape[-1]))[..., 0, :]
    step = missing.clamp(min=0) * gradient / gradient.square().sum(-1, keepdim=True)
    return torch.where(missing > 0, points + step, points)


def _tightest(points: Tensor, found: Tensor, sets: Sequence[SafeSet], margin: float, time: Time) -> Tensor:
    """The nearest point to `points` under the two tightest rows at `found`."""
    rows = [s.linearise(found, time) for s in sets]
    b = torch.cat([r.b for r in rows], dim=-1)
    gradient = torch.cat([r.gradient for r in rows], dim=-2)
    length = gradient.norm(dim=-1)
    bound = (b - margin) / length
    gradient = gradient / length[..., None]
    if b.shape[-1] > 2:
        bound, chosen = bound.topk(2, dim=-1, largest=False)
        gradient = gradient.gather(-2, chosen[..., None].expand(*chosen.shape, gradient.shape[-1]))
    # gradient . (z - found) + bound >= 0, for z near points.
    return found + two_rows.solve(points - found, -gradient, bound).x


def _better(
    points: Tensor, old: Tensor, new: Tensor, sets: Sequence[SafeSet], margin: float, time: Time
) -> Tensor:  # fmt: skip
    """Of two answers the less unsafe, and of two safe ones the nearer to points."""
    with torch.no_grad():
        room = tolerance(points)
        worse, better = ((violation(x, sets, margin, time) - room).clamp(min=0) for x in (old, new))
        far, near = ((x - points).square().sum(-1) for x in (old, new))
        chosen = (better < worse) | ((better == worse) & (near < far))
    return torch.where(chosen[..., None], new, old)


def _dykstra(points: Tensor, once: Tensor, sets: Sequence[SafeSet], margin: float, time: Time) -> Tensor:
    """Dykstra's alternating projections onto convex sets: the limit is the nearest common point.

    Where boundaries meet at a flat angle the limit is far, and the corner is then found by the rows that are tight.
    """
    found, held = points, [torch.zeros_like(points) for _ in sets]
    for _ in range(DYKSTRA):
        for i, s in enumerate(sets):
            wanted = found + held[i]
            found = s.project(wanted, margin, time)
            held[i] = wanted - found
    return _refined(points, _round(found, sets, margin, time)[0], sets, margin, time)


def _with_pairs(
    points: Tensor, alone: Sequence[SafeSet], pairs: Sequence[Distance], margin: float, time: Time,
    movable: Tensor | None,
) -> Tensor:  # fmt: skip
    """Agents pushed apart and out of obstacles by turns, from where each alone is nearest."""

    def stay(x: Tensor, points: Tensor, movable: Tensor | None) -> Tensor:
        return x if movable is None else torch.where(movable[..., None], x, points)

    def sweeps(found: Tensor, points: Tensor, time: Time, movable: Tensor | None) -> Tensor:
        for _ in range(PAIR_SWEEPS // PHASES):
            for s in pairs:
                found = s.sweep(found, margin, movable)
            found = stay(_settle(found, alone, margin, time), points, movable)
        return found

    found = stay(_alone(points, alone, margin, time), points, movable) if alone else points
    for _ in range(PHASES):
        unmet = (violation(found, [*alone, *pairs], margin, time) > 0).any(-1)
        found = where_needed(sweeps, unmet, found, found, points, time, movable)
    return found
