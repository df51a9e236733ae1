"""Projections: safe, at rest where it is safe, and never beaten by a safe point that a search finds."""

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from safe.distance import Distance
from safe.projection import least_barrier, project
from safe.sets import Ball, Box, Ceiling, Ellipse, HalfSpace, Obstacles, Superellipse
from tests.properties import few

MARGINS = st.sampled_from([0.0, 0.02, 0.1])
place, length = st.floats(-1, 1), st.floats(0.3, 1.5)
pairs = st.tuples(place, place)
radii = st.tuples(length, length)


def half_space(normal, offset):
    return HalfSpace(normal=(math.cos(normal), math.sin(normal)), offset=offset)


@st.composite
def boxes(draw):
    """Some sides open, and room for every margin."""
    low, width = draw(pairs), draw(st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)))
    shut = draw(st.tuples(*[st.booleans()] * 4).filter(any))
    return Box(
        low=tuple(v if s else -math.inf for v, s in zip(low, shut[:2], strict=True)),
        high=tuple(v + w if s else math.inf for v, w, s in zip(low, width, shut[2:], strict=True)),
    )


single = st.one_of(
    st.builds(half_space, st.floats(0, 2 * math.pi), place),
    boxes(),
    st.builds(Ball, center=pairs, radius=length, outside=st.booleans()),
    st.builds(Ellipse, center=pairs, radii=radii, outside=st.booleans()),
    st.builds(Superellipse, center=pairs, radii=radii, power=st.sampled_from([2.5, 4.0, 6.0]), outside=st.booleans()),
    st.builds(Ceiling, limit=place, velocity_weight=st.floats(0, 0.5)),
)
# Convex sets with a common room around the origin.
around = st.one_of(
    st.builds(half_space, st.floats(0, 2 * math.pi), st.floats(0.4, 1)),
    st.builds(lambda a, b, c, d: Box(low=(-a, -b), high=(c, d)), *[st.floats(0.4, 1.5)] * 4),
    st.builds(Ball, center=st.tuples(*[st.floats(-0.3, 0.3)] * 2), radius=st.floats(0.9, 1.5)),
    st.builds(lambda c, r: Ellipse(center=c, radii=r, outside=False), st.tuples(*[st.floats(-0.2, 0.2)] * 2),
              st.tuples(*[st.floats(0.8, 1.5)] * 2)),
)  # fmt: skip
seeds = st.integers(0, 2**31 - 1)


def drawn(seed, *shape, spread=1.5):
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest_found(x, found, sets, margin, seed):
    """Distance from each x (n, 2) to the nearest safe point of a wide search and of ever closer ones about `found`."""
    wide = drawn(seed + 1, 1, 4000, 2, spread=2.0).expand(len(x), -1, -1)
    reach = 10 ** -torch.linspace(0, 7, 2000, dtype=torch.float64)[:, None]
    near = found[:, None] + reach * drawn(seed + 2, len(x), 2000, 2, spread=1.0)
    tried = torch.cat([wide, near], 1)
    distance = (tried - x[:, None]).norm(dim=-1)
    return torch.where(least_barrier(tried, sets) >= margin, distance, torch.inf).amin(1)


@few
@given(s=single, margin=MARGINS, seed=seeds)
def test_one_set_is_left_by_the_shortest_way_and_then_at_rest(s, margin, seed):
    x = drawn(seed, 12, 2)
    found, info = project(x, [s], margin)
    assert info.feasible.all() and (least_barrier(found, [s]) >= margin - 1e-9).all()
    safe = least_barrier(x, [s]) >= margin
    assert torch.equal(found[safe], x[safe])
    torch.testing.assert_close(project(found, [s], margin)[0], found, rtol=0, atol=1e-9)
    assert ((found - x).norm(dim=-1) <= nearest_found(x, found, [s], margin, seed) + 1e-7).all()


@few
@given(sets=st.lists(around, min_size=2, max_size=4), margin=MARGINS, seed=seeds)
@example(sets=[half_space(0.0, 0.40625), half_space(2.0, 1.0), half_space(0.0, 0.40234375)], margin=0.0, seed=0)
def test_no_point_common_to_convex_sets_is_nearer(sets, margin, seed):
    x = drawn(seed, 12, 2)
    found, info = project(x, sets, margin)
    assert info.feasible.all() and (least_barrier(found, sets) >= margin - 1e-8).all()
    torch.testing.assert_close(project(found, sets, margin)[0], found, rtol=0, atol=1e-6)
    # Where curved boundaries meet at a flat angle, forty rounds end a little before the limit.
    assert ((found - x).norm(dim=-1) <= 1.01 * nearest_found(x, found, sets, margin, seed) + 1e-6).all()


@few
@given(sets=st.lists(around, min_size=1, max_size=1), seed=seeds)
def test_projections_onto_a_convex_set_never_part_two_points(sets, seed):
    x, y = drawn(seed, 2, 40, 2)
    moved = (project(x, sets)[0] - project(y, sets)[0]).norm(dim=-1)
    assert (moved <= (x - y).norm(dim=-1) + 1e-9).all()


@few
@given(
    obstacles=st.lists(st.tuples(place, place, st.floats(0.2, 0.6)), min_size=1, max_size=5),
    margin=MARGINS, seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_the_flag_says_whether_it_is_safe_and_what_is_safe_does_not_move(obstacles, margin, seed, dtype):
    sets = [Obstacles(centers=tuple((a, b) for a, b, _ in obstacles), radii=tuple(r for *_, r in obstacles))]
    x = drawn(seed, 60, 2).to(dtype)
    found, info = project(x, sets, margin)
    room = 1e-9 if dtype == torch.float64 else 1e-4
    assert torch.equal(info.feasible, least_barrier(found, sets) >= margin - room) and found.isfinite().all()
    safe = least_barrier(x, sets) >= margin
    assert torch.equal(found[safe], x[safe]) and info.feasible[safe].all()
    assert (info.violation_after <= info.violation_before + room).all()


@few
@given(agents=st.integers(2, 5), minimum=st.floats(0.1, 0.5), seed=seeds, data=st.data())
def test_teams_end_apart_in_any_order_of_their_copies(agents, minimum, seed, data):
    team = drawn(seed, 6, agents, 2, spread=0.3)
    found, info = project(team, [Distance(minimum=minimum)])
    apart = torch.stack([torch.pdist(one).amin() for one in found])
    assert info.feasible.all() and (apart >= minimum - 1e-6).all()
    order = data.draw(st.permutations(range(6)))
    torch.testing.assert_close(project(team[order], [Distance(minimum=minimum)])[0], found[order], rtol=0, atol=1e-12)
