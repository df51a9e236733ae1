"""What `tests.shapes` finds, once it is installed: run by `tests.test_shapes`, in a process of its own."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from madiff.data import EpisodeStore, WindowSampler
from madiff.data.motion import Motion
from madiff.data.normalizers import interpolate, make_normalizer
from madiff.data.windows import cumulative_weights
from madiff.diffusion.parametrization import Prediction, make_parametrization
from madiff.diffusion.sampler import Sample, Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver
from safe import couples, qp, two_rows
from safe.distance import Distance
from safe.projection import ProjectionInfo, project
from safe.safediffuser import nearest_change
from safe.sets import Ball
from safe.smooth_projection import project_smoothly
from safe.violations import measure, trapped

BALL = [Ball(center=(0.0, 0.0), radius=1.0, outside=True)]
APART = Distance(minimum=0.5)
ROWS = torch.tensor([0, 0]), torch.tensor([1, 2])


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape)


def yes(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


EPISODE = {"observations": ones(4, 2, 3), "actions": torch.zeros(3, 2, dtype=torch.int64), "rewards": ones(3, 2)}
STORE = EpisodeStore.from_arrays([EPISODE])


def windows() -> WindowSampler:
    return WindowSampler(STORE, history=1, horizon=2, batch_size=2)


def spoilt(name: str, value: torch.Tensor) -> WindowSampler:
    """Windows of which one entry has another shape than the others."""
    source = windows()
    source.fields[name] = value
    return source


SCHEDULE = make_schedule("cosine", 10)
NOISY, LESS = SCHEDULE.levels(SCHEDULE.grid(2))[:2]


def sampled(denoiser, shape=(2, 3, 2, 4), **options) -> Sample:
    sampler = Sampler(SCHEDULE, make_parametrization("x0", SCHEDULE), make_solver("ddim"))
    return sampler.sample(denoiser, shape, steps=2, generator=torch.Generator(), **options)


def echo(x, t, cond):
    return x


def stepped(x: torch.Tensor, pred: Prediction) -> torch.Tensor:
    return make_solver("ddim").step(x, NOISY, LESS, pred, None, None)


class Narrow(Ball):
    """A set that forgets a barrier's axis."""

    def barriers(self, local):
        return super().barriers(local)[..., 0]


RIGHT = {
    "one point": lambda: project(ones(2), BALL),
    "plans, held": lambda: project(ones(5, 4, 3, 2), BALL, movable=yes(5, 4, 3)),
    "a team": lambda: project(ones(3, 2), [APART], movable=yes(3)),
    "plans": lambda: project_smoothly(ones(5, 4, 3, 2), BALL, movable=yes(4, 1)),
    "shared matrices": lambda: qp.solve(torch.eye(3), ones(7, 3), ones(2, 3), ones(7, 2)),
    "robots": lambda: couples.solve(ones(5, 3, 2), *ROWS, ones(2, 2, 2), ones(2)),
    "windows": lambda: windows().sample(torch.Generator()),
    "a sample": lambda: sampled(echo, noise=ones(2, 3, 2, 4)),
    "candidates": lambda: sampled(echo, candidates=3, warm_start=(ones(2, 3, 2, 4), 0.5)),
    "a step": lambda: stepped(ones(2, 3, 2, 4), Prediction(ones(2, 3, 2, 4), ones(2, 3, 2, 4))),
}

WRONG = {
    "whole numbers": (lambda: project(ones(4, 2).int(), BALL), "points"),
    "a mask of other points": (lambda: project(ones(4, 2), BALL, movable=yes(3)), "movable"),
    "a mask of numbers": (lambda: project(ones(4, 2), BALL, movable=ones(4)), "movable"),
    "a plan without agents": (lambda: project_smoothly(ones(4, 2), BALL), "points"),
    "flags of other points": (lambda: ProjectionInfo(yes(4), ones(3), ones(4), 1), "violation_before"),
    "one agent less to push": (lambda: APART.sweep(ones(5, 3, 2), movable=yes(2)), "movable"),
    "a matrix that is not square": (lambda: qp.solve(ones(3, 4), ones(3), ones(2, 3), ones(2)), "P"),
    "a bound too many": (lambda: qp.solve(None, ones(3), ones(2, 3), ones(3)), "h"),
    "batches that do not broadcast": (lambda: qp.solve(None, ones(4, 3), ones(5, 2, 3), ones(2)), "G"),
    "equalities of other sizes": (lambda: qp.solve(None, ones(3), ones(2, 3), ones(2), ones(1, 3), ones(2)), "b"),
    "normals of one robot": (lambda: couples.solve(ones(3, 2), *ROWS, ones(2, 1, 2), ones(2)), "normals"),
    "two rows of another space": (lambda: two_rows.solve(ones(4, 2), ones(4, 2, 3), ones(4, 2)), "rows"),
    "gradients without bounds": (lambda: nearest_change(ones(4, 2), ones(4, 3, 2), ones(4, 2)), "bound"),
    "episodes without agents": (lambda: measure(ones(5, 4, 2), BALL), "points"),
    "steps of other episodes": (lambda: trapped(ones(5, 4, 3, 2), valid=yes(5, 3)), "valid"),
    "a column of data": (lambda: make_normalizer("limits").fit(ones(4)), "x"),
    "knots of other features": (lambda: interpolate(ones(4, 3), ones(2, 8), ones(2, 8)), "source"),
    "an agent's values": (lambda: Motion(ones(2, 3, 3), ones(2, 3, 1), ones(2, 3)).free(ones(3)), "observations"),
    "windows by name": (lambda: windows().gather(ones(2)), "now"),
    "weights of two dimensions": (lambda: cumulative_weights(STORE, ones(1, 1)), "weights"),
    "a network that loses features": (lambda: sampled(lambda x, t, cond: x[..., :1]), "x"),
    "samples without agents": (lambda: sampled(echo, shape=(2, 3, 4)), "x"),
    "a plan that is no batch": (lambda: sampled(echo, warm_start=(ones(3, 2, 4), 0.5)), "warm_start"),
    "noise of a longer plan": (lambda: sampled(echo, noise=ones(2, 3, 3, 2, 4)), "noise"),
    "a step without agents": (lambda: stepped(ones(2, 3, 4), Prediction(ones(2, 3, 4), ones(2, 3, 4))), "x"),
    "estimates that differ": (lambda: stepped(ones(2, 3, 2, 4), Prediction(ones(2, 3, 2, 4), ones(1))), "pred"),
    "times of two axes": (lambda: SCHEDULE.level(ones(2, 1)), "t"),
    "whole times": (lambda: SCHEDULE.alpha(torch.tensor([1])), "t"),
}  # fmt: skip

RESULTS = {
    "barriers without rows": lambda: Narrow(center=(0.0, 0.0), radius=1.0).b(ones(4, 2)),
    "windows with a step too many": lambda: spoilt("actions", torch.zeros(3, 2, 2, 1)).gather(torch.arange(2)),
    "windows with an unknown entry": lambda: spoilt("returns_to_go", ones(3, 2)).gather(torch.arange(2)),
}


@pytest.mark.parametrize("call", RIGHT.values(), ids=RIGHT)
def test_right_shapes_pass(call):
    call()


@pytest.mark.parametrize(("call", "name"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(call, name):
    with pytest.raises(TypeCheckError, match=f"parameter '{name}'"):
        call()


@pytest.mark.parametrize("call", RESULTS.values(), ids=RESULTS)
def test_wrong_results_are_found(call):
    with pytest.raises(TypeCheckError, match="return value"):
        call()
