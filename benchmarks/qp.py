"""Quadratic programs per second: ours called directly and inside CvxpyLayer, against the stock CvxpyLayer and qpth.

All solve the same float64 programs with the same number of threads: the projection of a point onto random half-spaces
that have a common point, and 32 robots moved apart pair by pair. The stock layer (DIFFCP) runs at the tolerance at
which its answers come within 1e-6 or so of the exact ones; how far they are, and its gradients, stands in the row.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch
from cvxpylayers.torch import CvxpyLayer
from torch import Tensor

from benchmarks.peers import Peer, started
from benchmarks.timing import rate, row
from safe import couples, qp, qp_layer

ROUNDS = 5
PEER_ROUNDS = 2  # of the peers, which take seconds
EPS = 1e-9
# variables, rows, batch
DENSE = ((2, 3, 1024), (8, 16, 1024))
ROBOTS, SCENES = 32, 16


class Case(NamedTuple):
    """One family of programs: what goes in, and who solves it (inputs -> x), ours first."""

    name: str
    batch: int
    inputs: tuple[Tensor, ...]
    direct: Callable[..., Tensor]
    layer: Callable[..., Tensor]
    stock: Callable[..., Tensor]
    dense: dict[str, Tensor]  # q, G, h for peers that know matrices only
    residual: float


def half_spaces(n: int, m: int, batch: int) -> Case:
    """min |u - reference|^2 subject to m rows gradient . u + level >= 0, as one barrier program per waypoint."""
    g = torch.Generator().manual_seed(0)
    reference, inside = torch.randn(2, batch, n, generator=g, dtype=torch.float64)
    gradient = torch.randn(batch, m, n, generator=g, dtype=torch.float64)
    level = 0.3 * torch.rand(batch, m, generator=g, dtype=torch.float64) - (gradient @ (inside[..., None] / 2))[..., 0]

    def direct(reference: Tensor, gradient: Tensor, level: Tensor) -> Tensor:
        return qp.solve(None, -reference, -gradient, level).x

    ours = qp_layer.barrier_layer(n, m)
    u, r, c, a = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(u) - r @ u), [c @ u + a >= 0])
    residual = float(qp.solve(None, -reference, -gradient, level).residual.max())
    return Case(
        f"{n} variables, {m} rows, batch {batch}", batch, (reference, gradient, level),
        direct, lambda *t: ours(*t)[0], stock(problem, [r, c, a], u),
        {"q": -reference, "G": -gradient, "h": level}, residual,
    )  # fmt: skip


def crowd(robots: int, batch: int) -> Case:
    """Robots in the plane, every two of them to be kept apart along the line that joins them."""
    g = torch.Generator().manual_seed(0)
    reference = torch.randn(batch, robots, 2, generator=g, dtype=torch.float64)
    first, second = couples.pairs(robots)
    lines = torch.nn.functional.normalize(reference[:, first] - reference[:, second], dim=-1)
    limits = torch.full((batch, len(first)), -0.3, dtype=torch.float64)

    def direct(reference: Tensor, lines: Tensor, limits: Tensor) -> Tensor:
        return couples.solve(reference, first, second, torch.stack((-lines, lines), 2), limits).x

    incidence = np.zeros((len(first), robots))
    incidence[np.arange(len(first)), first], incidence[np.arange(len(first)), second] = 1.0, -1.0
    u, r = cp.Variable((robots, 2)), cp.Parameter((robots, 2))
    line, limit = cp.Parameter((len(first), 2)), cp.Parameter(len(first))
    apart = cp.sum(cp.multiply(line, incidence @ u), axis=1) + limit >= 0
    objective = cp.Minimize(0.5 * cp.sum_squares(u) - cp.sum(cp.multiply(r, u)))
    problem = cp.Problem(objective, [apart])
    ours = qp_layer.layer(problem, [r, line, limit], [u])
    incidence = torch.as_tensor(incidence)
    G = -(incidence[..., None] * lines[:, :, None]).flatten(2)
    solution = couples.solve(reference, first, second, torch.stack((-lines, lines), 2), limits)
    return Case(
        f"{robots} robots, {len(first)} pairs, batch {batch}", batch, (reference, lines, limits),
        direct, lambda *t: ours(*t)[0], stock(problem, [r, line, limit], u),
        {"q": -reference.flatten(1), "G": G, "h": limits}, float(solution.residual.max()),
    )  # fmt: skip


def stock(problem: cp.Problem, parameters: list[cp.Parameter], variable: cp.Variable) -> Callable[..., Tensor]:
    layer = CvxpyLayer(problem, parameters, [variable])
    # Its backward pass always takes all cores; its forward pass takes as many as we do.
    options = {"eps": EPS, "max_iters": 100_000, "n_jobs_forward": torch.get_num_threads()}
    return lambda *tensors: layer(*tensors, solver_args=options)[0]


def chunk(case: Case, solve: Callable[..., Tensor], backward: bool) -> Callable[[], int]:
    """One batch solved, and differentiated in every input."""
    inputs = [t.clone().requires_grad_(backward) for t in case.inputs]

    def run() -> int:
        x = solve(*inputs)
        if backward:
            torch.autograd.grad(x.sum(), inputs)
        return case.batch

    return run


def errors(case: Case, solve: Callable[..., Tensor]) -> dict[str, float]:
    """Largest distance of a route's points and gradients from those of ours called directly."""
    found = []
    for route in (case.direct, solve):
        inputs = [t.clone().requires_grad_() for t in case.inputs]
        x = route(*inputs)
        found.append((x.detach(), *torch.autograd.grad(x.sum(), inputs)))
    gaps = [float((a.reshape(b.shape) - b).abs().max()) for a, b in zip(*found, strict=True)]
    return {"peer_error": gaps[0], "peer_gradient_error": max(gaps[1:])}


def rows() -> Iterator[dict]:
    """Forward, and forward with backward, of every case against every peer."""
    for n, m, batch in DENSE:
        yield from case_rows(half_spaces(n, m, batch))
    yield from case_rows(crowd(ROBOTS, SCENES))


def case_rows(case: Case) -> Iterator[dict]:
    distance = errors(case, case.stock)
    for backward in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            yield from mode_rows(case, backward, Path(folder) / "programs.npz", distance)


def mode_rows(case: Case, backward: bool, file: Path, distance: dict[str, float]) -> Iterator[dict]:
    """Rounds in alternation; ours runs in every one of them, the stock layer in the first few."""
    mode = "forward and backward" if backward else "forward"
    ours = {"direct": chunk(case, case.direct, backward), "layer": chunk(case, case.layer, backward)}
    stock = chunk(case, case.stock, backward)
    peer, missing = qpth(case, backward, file)
    for warm in ours.values():
        warm(), warm()
    own: dict[str, list[float]] = {"direct": [], "layer": []}
    other: dict[str, list[float]] = {"stock layer": [], "qpth": []}
    for turn in range(ROUNDS):
        for name, run in ours.items():
            own[name].append(rate(run))
        if turn >= PEER_ROUNDS:
            continue
        other["stock layer"].append(rate(stock))
        if peer is not None:
            answer = peer.measure()
            other["qpth"].append(answer["steps"] / answer["seconds"])
    versions = {name: version(name) for name in ("cvxpylayers", "diffcp")}
    found = {} if peer is None else {**peer.versions}
    gaps = {"stock layer": distance, "qpth": {"peer_error": found.pop("error", None)}}
    versions = {"stock layer": versions, "qpth": found}
    for name in ours:
        for against in gaps:
            paired = own[name][: len(other[against]) or None]
            label = f"{case.name}, {mode}, {name} / {against}"
            made = row(label, paired, other[against], "QPs/s", versions[against], missing)
            yield made | {"ours": statistics.median(own[name]), "residual": case.residual} | gaps[against]
    if peer is not None:
        peer.close()


def qpth(case: Case, backward: bool, file: Path) -> tuple[Peer | None, str]:
    """The peer, or None and why: on some processors it fails on large programs."""
    arrays = {k: v.numpy() for k, v in case.dense.items()}
    np.savez(file, **arrays, x=case.direct(*case.inputs).flatten(1).numpy())
    mode = "backward" if backward else "forward"
    return started("qpth", "qpth_layer.py", file, mode, torch.get_num_threads())
