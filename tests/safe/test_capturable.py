"""What keeps plans safe never looks at values on the way, wherever it says that a graph can record it.

The loop runs on torch's `meta` device, where tensors have shapes and no values: a branch, a loop or a shape that
depends on values raises there. What is copied from the host to the device in every call is caught besides.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from madiff.diffusion.guidance import ClassifierFree, ClassifierGuidance, ClipX0, GradientGuidance
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Hook, Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver
from safe.distance import Distance
from safe.dynamics import Dynamics, LinearMotion, dynamics_of
from safe.safediffuser import HOOKS, make_hook
from safe.sets import Ball, HalfSpace, Obstacles
from tests.safe.drawing import Layout

XY = {"dimensions": (2, 3)}
SETS = [
    Ball(center=(0.0, 0.2), radius=0.6, **XY),
    Obstacles(centers=((1.0, 1.0), (1.4, 1.2)), radii=(0.3, 0.4), **XY),
    HalfSpace(normal=(0.0, 1.0), offset=-2.0, **XY),
]
MOVING = [Ball(center=(0.0, 0.2), radius=0.6, velocity=(0.1, 0.0), dimensions=(0, 1)),
          Distance(minimum=0.3, dimensions=(0, 1))]  # fmt: skip
META = torch.device("meta")
SCALES = {"scale": torch.empty(4, device=META), "shift": torch.empty(4, device=META)}  # a planner's are on its device


class FromTheHost(TorchDispatchMode):
    """Raises where a tensor of the host, other than a number, meets tensors of the device."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [a for a in torch.utils._pytree.tree_leaves((arguments, options)) if isinstance(a, torch.Tensor)]
        out = function(*arguments, **(options or {}))
        results = [a for a in torch.utils._pytree.tree_leaves(out) if isinstance(a, torch.Tensor)]
        on_device = any(tensor.device == META for tensor in (*tensors, *results))
        host = [tensor for tensor in tensors if tensor.device != META and tensor.ndim]
        assert not (on_device and host), f"{function} takes {tuple(host[0].shape)} from the host"
        return out


@torch.no_grad()
def draw(hooks, solver="ddim", schedule="cosine", parametrization="x0", agents=1, plans=3, candidates=2):
    """A whole loop with in-painting, free noise and conditions; nothing in it has a value."""
    made = make_schedule(schedule)
    sampler = Sampler(made, make_parametrization(parametrization, made), make_solver(solver), hooks)
    shape = (plans, 8, agents, 4)
    known = torch.empty(shape, device=META), torch.empty(1, 8, 1, 1, device=META)
    rows = (plans * candidates, *shape[1:])
    drawing = {
        "steps": 2, "generator": torch.Generator(), "known": known, "candidates": candidates,
        "cond": {"c": torch.empty(plans, device=META)}, "noise": torch.empty(rows, device=META),
        "context": {"time": torch.empty(plans, device=META)},
    }  # fmt: skip
    sampler.sample(denoiser, shape, **drawing)  # constants are made once, and stay
    with FromTheHost():
        return sampler.sample(denoiser, shape, **drawing)


denoiser = ClassifierFree(lambda x, t, cond: torch.tanh(x + (t * cond["c"] * cond["keep"]).view(-1, 1, 1, 1)), 1.5)


CASES = [(name, False) for name in HOOKS if name not in ("tvs-released", "predict-correct")]


@pytest.mark.parametrize(("name", "moving"), [*CASES, ("ros", True), ("final", True)])
def test_safeguards_say_the_truth(name, moving):
    layout = Layout(names=("x", "y", "vx", "vy"), **SCALES) if moving else Layout(**SCALES)
    hook = make_hook(name, MOVING if moving else SETS, layout, dynamics=dynamics_of(layout.names) if moving else None)
    assert hook.capturable
    sample = draw([ClipX0(), hook], agents=1 + moving)
    assert sample.x.device == META and "least_barrier" in sample.info


def test_what_lives_on_the_host_says_so():
    assert not make_hook("ros", SETS, Layout(), backend="cvxpylayers").capturable
    motion = LinearMotion(torch.zeros(1, 2), torch.eye(1), torch.zeros(1))
    hook = make_hook("exact", SETS, Layout(**SCALES), dynamics=Dynamics((2,), (1,), (0,), 1.0, motion))
    assert not hook.capturable
    with pytest.raises(AssertionError, match="from the host"):
        draw([hook])


@pytest.mark.parametrize("solver", ["ddim", "dpmpp1", "dpmpp2m"])  # that draw nothing: the generator is the host's
def test_solvers_and_guidance_look_at_no_value(solver):
    value = lambda x, t: x.square().sum((1, 2, 3)) * t  # noqa: E731
    hooks: list[Hook] = [GradientGuidance(value, 0.1, 2), ClassifierGuidance(value), ClipX0(rederive=True)]
    assert all(hook.capturable for hook in hooks)
    assert draw(hooks, solver).x.shape == (3, 2, 8, 1, 4)
