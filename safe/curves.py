"""Nearest points on ellipses and superellipses, for any number of points at once and from anywhere.

All take u (..., D) relative to the centre and return points on the curve; the gradient with respect to u is exact
(implicit differentiation of the one unknown). Ties go to one fixed side: from the centre of a circle along the first
of the shortest axes.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from safe.constants import like
from safe.roots import bracketed_newton, implicit

SECULAR_STEPS = 8  # quadratic convergence from within a factor sqrt(D): rounding is reached in 5 to 7
CORNER_STEPS = 7  # from within a sixteenth of a quarter; 6 reach rounding
KNOTS = 16  # intervals a quarter of a superellipse is searched in


def nearest_on_ellipse(u: Tensor, radii: tuple[float, ...]) -> Tensor:
    """The point z of sum (z_i / a_i)^2 = 1 that is nearest to u, in any dimension.

    z_i = a_i^2 u_i / (a_i^2 + t), with t > -min a^2 the largest root of sum (a_i u_i / (a_i^2 + t))^2 = 1: Newton on
    1 / norm, which is nearly linear in t (More and Sorensen 1983).
    """
    axes = like(radii, u)
    shortest = radii.index(min(radii))
    gap = like(tuple(a**2 - min(radii) ** 2 for a in radii), u)
    u = _off_plane(u, shortest, radii[shortest])
    pull = axes * u
    with torch.no_grad():
        tau = (pull.abs() - gap).amax(-1, keepdim=True)  # t + min a^2: kept small numbers small
        for _ in range(SECULAR_STEPS):
            term = pull / (gap + tau)
            norm = term.square().sum(-1, keepdim=True).sqrt()
            tau = tau + (norm - 1) * norm.square() / (term.square() / (gap + tau)).sum(-1, keepdim=True)
    term = pull / (gap + tau)
    value = term.square().sum(-1, keepdim=True) - 1
    tau = implicit(tau, value, -2 * (term.square() / (gap + tau)).sum(-1, keepdim=True))
    z = axes * (pull / (gap + tau))
    return z / (z / axes).square().sum(-1, keepdim=True).sqrt()


def _off_plane(u: Tensor, axis: int, radius: float) -> Tensor:
    """u moved off the plane through the centre across the shortest axis, where the nearest point is not unique."""
    least = radius * torch.finfo(u.dtype).eps ** 0.75
    on_axis = like(tuple(float(i == axis) for i in range(u.shape[-1])), u) > 0
    side = torch.where(u < 0, -least, least)
    return torch.where(on_axis & (u.abs() < least), side, u)


def nearest_on_superellipse(u: Tensor, radii: tuple[float, float], power: float) -> Tensor:
    """The point z of |z_0 / a|^p + |z_1 / b|^p = 1 that is nearest to u (..., 2), for powers p >= 2.

    A quarter of the curve is q(t) = (a (1 - t), b t) / ((1 - t)^p + t^p)^(1/p), t in [0, 1]. The nearest of a few of
    its points brackets the minimum; Newton on (q(t) - u) . q'(t) = 0, safeguarded by the bracket, finds it.
    """
    quarter = u.abs()
    with torch.no_grad():
        marks = like(_marks(radii, power), u)
        nearest = (marks.square().sum(-1) - 2 * quarter @ marks.T).argmin(-1)  # of |u - mark|^2, without |u|^2
        start, low, high = ((nearest + shift).clamp(0, KNOTS).to(u.dtype) / KNOTS for shift in (0, -1, 1))
        t = bracketed_newton(lambda t: _descent(t, quarter, radii, power), start, low, high, CORNER_STEPS)
    t = implicit(t, *_descent(t, quarter, radii, power))
    return torch.where(u < 0, -1.0, 1.0) * _on_quarter(t, radii, power)


@lru_cache(maxsize=256)
def _marks(radii: tuple[float, float], power: float) -> tuple[tuple[float, float], ...]:
    knots = torch.linspace(0, 1, KNOTS + 1, dtype=torch.float64)
    return tuple(map(tuple, _on_quarter(knots, radii, power).tolist()))


def _on_quarter(t: Tensor, radii: tuple[float, float], power: float) -> Tensor:
    reach = _inverse_root(raised(1 - t, power) + raised(t, power), power)
    return torch.stack([radii[0] * (1 - t) * reach, radii[1] * t * reach], dim=-1)


def _descent(t: Tensor, u: Tensor, radii: tuple[float, float], power: float) -> tuple[Tensor, Tensor]:
    """(q(t) - u) . q'(t) without the positive factor s^(-1/p - 1), s = (1 - t)^p + t^p, and its derivative in t."""
    a, b = radii
    along, across = raised(t, power - 2), raised(1 - t, power - 2)
    rise, fall = along * t, across * (1 - t)
    total = rise * t + fall * (1 - t)
    reach = _inverse_root(total, power)
    x, y = a * (1 - t) * reach - u[..., 0], b * t * reach - u[..., 1]
    speed = reach / total
    value = b * fall * y - a * rise * x
    slope = speed * ((a * rise) ** 2 + (b * fall) ** 2) - (power - 1) * (a * along * x + b * across * y)
    return value, slope


def raised(x: Tensor, power: float) -> Tensor:
    """x^power for x >= 0, by products where the power is a small whole number."""
    if power == 2:
        return x * x
    if power == 3:
        return x * x * x
    if power == 4:
        square = x * x
        return square * square
    return x if power == 1 else x**power


def _inverse_root(x: Tensor, power: float) -> Tensor:
    """x^(-1 / power)."""
    return x.rsqrt().sqrt() if power == 4 else x ** (-1 / power)
