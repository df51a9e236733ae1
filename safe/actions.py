"""A layer that actions pass through: each agent's sampled action gives way to the nearest one that keeps it safe.

Safe is an action after which every barrier keeps its share, a discrete-time barrier function (Agrawal, Sreenath 2017)
along an affine model of the motion o' = o A^T + a B^T + c (`madiff.data.motion`): with the action held for k steps,

    h(o_k) - margin >= (1 - gamma)^k (h(o) - margin),    -1 <= a <= 1,

so a barrier never falls below the margin, or comes back to it at that rate. Outside of curves h is the distance in
radii, level^(1/p) - 1 where b = level - 1 has degree p: as b it is convex and 0 at the edge, but it does not grow with
a power of the distance, so that gamma means the same far away. Elsewhere h = b. h is linearised at the o_k of an action
of zero, which is cautious wherever it is convex. Looking k > 1 steps ahead is for barriers that an action reaches only
after several steps, as positions driven by forces: h(o_1) would not depend on the action at all.

The quadratic program is solved and differentiated for all rows and agents at once, so a policy can be trained through
the layer as well as be followed by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from madiff.data.motion import AffineMotion, Motion
from madiff.diffusion.inpainting import repeat_rows
from madiff.diffusion.sampler import Hook
from madiff.interfaces import UserError
from safe.constants import like
from safe.projection import tolerance
from safe.safediffuser import BACKENDS, nearest_change
from safe.sets import SafeSet

Report = dict[str, Tensor]
FAINT = 1e-3  # change of a feature by a whole action, relative to its usual change in a step, that is none


class ActionLayer(Hook):
    """The layer as a hook on finished samples of actions (rows, 1, agent, D); none of the network's steps change.

    sets: on the features of an observation, not moving; gamma in [0, 1]: share of what a barrier has beyond the margin
    that may be lost in a step; ahead: k. The sampler's context holds `observations` (B, agent, O), the present ones in
    real units. Agents that keep a distance meet half of each pair's row.

    Where all rows hold the sample comes back bit for bit; where none can hold together, the action violates them
    little. Reports, and tells `watch`, (rows, agent) bool: `moved`, and `infeasible`, those that no action makes safe.
    """

    def __init__(
        self, sets: Sequence[SafeSet], motion: AffineMotion, *, gamma: float, ahead: int = 1, margin: float = 0.01,
        backend: str = "torch", watch: Callable[[Report], None] | None = None,
    ) -> None:  # fmt: skip
        if backend not in BACKENDS:
            raise UserError(f"unknown value {backend!r}", "safe.backend", BACKENDS)
        self.sets, self.motion, self.margin = tuple(sets), motion.ahead(ahead), margin
        self.kept, self.backend, self.watch = (1 - gamma) ** ahead, backend, watch

    @property
    def capturable(self) -> bool:
        """cvxpylayers works on the host, and so does whoever watches."""
        return self.backend == "torch" and self.watch is None

    def final(self, x: Tensor, ctx: dict[str, Any]) -> tuple[Tensor, Report]:
        gradient, bound = self.rows(repeat_rows(ctx["observations"], ctx["candidates"]).to(x.dtype))
        actions = x[:, 0]
        # The environment takes no more than 1, so that is what has to be safe.
        wanted = actions.clamp(-1, 1)
        found = nearest_change(wanted, gradient, bound, backend=self.backend)
        moved = (found != wanted).any(-1)
        found = found.clamp(-1, 1)
        kept = ((gradient * found[..., None, :]).sum(-1) + bound >= -tolerance(x)).all(-1)
        report = {"moved": moved, "infeasible": moved & ~kept}
        if self.watch is not None:
            self.watch(report)
        return torch.where(moved[..., None], found, actions)[:, None], report

    def rows(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """All that an action has to meet, gradient . a + bound >= 0: (B, agent, rows, D) and (B, agent, rows)."""
        motion = Motion(*(t.to(observations) for t in self.motion))
        free = motion.free(observations)
        rows = [self._row(s, observations, free) for s in self.sets]
        slope, level = torch.cat([r[0] for r in rows], dim=-2), torch.cat([r[1] for r in rows], dim=-1)
        gradient = torch.einsum("...ari,aid->...ard", slope, motion.action)
        eye = torch.eye(gradient.shape[-1], dtype=gradient.dtype, device=gradient.device)
        limits = torch.cat([eye, -eye]).expand(*gradient.shape[:-2], -1, -1)
        return torch.cat([gradient, limits], dim=-2), torch.cat([level, torch.ones_like(limits[..., 0])], dim=-1)

    def _row(self, s: SafeSet, now: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
        """A set's slopes at `then` (B, agent, rows, O), and by how much its barriers exceed what they have to keep."""
        degree, ahead = degree_of(s), s.linearise(then)
        margin = (1 + self.margin) ** (1 / degree) - 1
        level = (length(ahead.b, degree) - margin) - self.kept * (length(s.b(now), degree) - margin)
        # Where a gradient is lengthened, inside of about half the radius, the length changes at that rate as well.
        least = degree ** (-degree / (degree - 1)) if degree > 1 else 1.0
        rate = (1 + ahead.b).clamp(min=least) ** (1 / degree - 1) / degree
        share = like(ahead.share, level)
        return rate[..., None] * ahead.gradient, share * level


def degree_of(s: SafeSet) -> float:
    """p where a barrier is the level of a curve less 1, which no point takes below -1; 1 for all others."""
    return 1.0 if math.isinf(s.depth) else getattr(s, "power", 2.0)


def length(b: Tensor, degree: float) -> Tensor:
    """A barrier as a length."""
    return b if degree == 1 else (1 + b).clamp(min=0) ** (1 / degree) - 1


def check_sets(sets: Sequence[SafeSet]) -> None:
    """Refuse sets that move: a policy is not told the time."""
    if any(s.velocity is not None and any(s.velocity) for s in sets):
        raise UserError("a set moves, and a policy does not know the time", "safe.constraints", "sets without velocity")


def check_reach(sets: Sequence[SafeSet], motion: AffineMotion, ahead: int, names: Sequence[str]) -> None:
    """Refuse a model that was never fitted, and sets that no action reaches within so many steps."""
    if not int(motion.seen):
        raise UserError("it was trained before actions could be kept safe", "run", "train it again")
    pushed = motion.ahead(ahead).action.abs().amax(-1)
    reached = (pushed > FAINT * motion.moved).any(0).tolist()
    for s in sets:
        dimensions = s.dimensions if s.dimensions is not None else tuple(range(len(names)))
        if not any(reached[d] for d in dimensions):
            what = f"no action reaches {', '.join(names[d] for d in dimensions)} within {ahead} step{'s' * (ahead > 1)}"
            raise UserError(what, "safe.ahead", f"more than {ahead}")
