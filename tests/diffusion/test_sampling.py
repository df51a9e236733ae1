"""The sampling loop: hooks, in-painting, temperatures, warm start, candidates."""

import math

import pytest
import torch

from madiff import interfaces
from madiff.diffusion.guidance import ClipX0
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Hook, Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver

SHAPE = (3, 4, 2, 5)


def make_sampler(schedule="cosine", parametrization="epsilon", solver="ddim", hooks=(), **options):
    schedule = make_schedule(schedule)
    return Sampler(schedule, make_parametrization(parametrization, schedule), make_solver(solver, **options), hooks)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(x, t, cond):
    return torch.tanh(x.roll(1, 1) + t.view(-1, 1, 1, 1)) + cond.get("shift", 0.0)


def history():
    value = torch.randn(SHAPE, generator=seeded(7))
    return value, (torch.arange(4) < 2).float().view(1, 4, 1, 1)


class Recorder(Hook):
    """Writes down every call, and disturbs everything it is shown."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def before(self, x, t, ctx):
        self.log.append((self.name, "before", x.clone(), ctx["step"], ctx["calls"]))
        return x + 1

    def predict(self, pred, x, t, ctx):
        self.log.append((self.name, "predict", x.clone(), ctx["step"], ctx["calls"]))
        return pred._replace(x0=pred.x0 * 0.9)

    def after(self, x_prev, x_next, x0_hat, t, s, ctx):
        self.log.append((self.name, "after", x_next.clone(), ctx["step"], ctx["calls"]))
        assert (t > s).all() and t.shape == s.shape == (len(x_next),)
        return x_next - 1, {f"{self.name}_time": s}

    def final(self, x, ctx):
        self.log.append((self.name, "final", x.clone(), ctx["step"], ctx["calls"]))
        return x + 5, {f"{self.name}_end": x.mean()}


def test_hooks_are_what_the_interfaces_promise():
    assert isinstance(Hook(), interfaces.Hook)


def test_hooks_run_in_order_at_their_moments_and_report():
    log = []
    sampler = make_sampler(hooks=[Recorder("a", log), Recorder("b", log)])
    sample = sampler.sample(network, SHAPE, steps=2, generator=seeded())
    moments = ["before", "predict", "after"]
    expected = [(name, moment, step) for step in (0, 1) for moment in moments for name in "ab"]
    expected += [("a", "final", 1), ("b", "final", 1)]
    assert [(name, moment, step) for name, moment, _, step, _ in log] == expected
    assert sample.calls == 2
    assert [times[0].item() for times in sample.info["a_time"]] == pytest.approx([0.5, 0.0])
    assert len(sample.info["b_end"]) == 1
    torch.testing.assert_close(sample.x, log[-1][2] + 5)


@pytest.mark.parametrize(
    ("schedule", "parametrization", "solver"),
    [("cosine", "epsilon", "ddim"), ("vp", "v", "ddpm"), ("flow", "flow", "flow_euler"), ("edm", "edm", "edm_heun")],
)
def test_known_entries_stay_bit_for_bit_through_disturbing_hooks(schedule, parametrization, solver):
    value, mask = history()
    seen, log = [], []

    def watch(x, t, cond):
        seen.append(x)
        return network(x, t, cond)

    sampler = make_sampler(schedule, parametrization, solver, [Recorder("a", log)])
    sample = sampler.sample(watch, SHAPE, steps=4, known=(value, mask), generator=seeded())
    for x in [*seen, *[entry[2] for entry in log], sample.x]:
        assert torch.equal(x[:, :2], value[:, :2])
    assert not torch.isclose(sample.x[:, 2:], value[:, 2:]).any()


def test_in_painting_equals_a_plain_ddim_loop():
    schedule, (value, mask) = make_schedule("cosine"), history()
    value = value.double()
    sample = make_sampler().sample(network, SHAPE, steps=5, known=(value, mask), generator=seeded())
    x = torch.randn(SHAPE, generator=seeded(), dtype=torch.float64) * schedule.sigma(torch.ones(1).double())
    for i in range(5):
        t, s = torch.tensor([1 - i / 5, 1 - (i + 1) / 5], dtype=torch.float64)
        x = mask * value + (1 - mask) * x
        eps = network(x, t.expand(3), {})
        x0 = (x - schedule.sigma(t) * eps) / schedule.alpha(t)
        x = schedule.alpha(s) * x0 + schedule.sigma(s) * eps
    torch.testing.assert_close(sample.x, mask * value + (1 - mask) * x)


def first_input(**options):
    inputs = []

    def watch(x, t, cond):
        inputs.append(x)
        return network(x, t, cond)

    make_sampler(solver="ddpm").sample(watch, SHAPE, generator=seeded(), dtype=torch.float64, **options)
    return inputs


def test_temperature_scales_the_first_noise_and_the_injected_noise_apart():
    warm, cold = first_input(steps=3), first_input(steps=3, temperature=0.5)
    torch.testing.assert_close(cold[0], 0.5 * warm[0])
    silent = first_input(steps=3, noise_temperature=0.0)
    torch.testing.assert_close(silent[0], warm[0])
    default, same = first_input(steps=3, temperature=0.5), first_input(steps=3, temperature=0.5, noise_temperature=0.5)
    torch.testing.assert_close(default[2], same[2])
    half = first_input(steps=3, noise_temperature=0.5)
    torch.testing.assert_close(half[1] - silent[1], 0.5 * (warm[1] - silent[1]))


def test_first_noise_may_be_the_callers():
    noise = torch.randn(SHAPE, generator=seeded(9), dtype=torch.float64)
    (first,) = first_input(steps=1, noise=noise, temperature=0.5)
    torch.testing.assert_close(first, 0.5 * noise)


def test_warm_start_noises_the_plan_to_its_level():
    schedule, plan = make_schedule("cosine"), torch.randn(SHAPE, generator=seeded(3), dtype=torch.float64)
    inputs = first_input(steps=4, warm_start=(plan, 0.3), temperature=0.5)
    t = torch.tensor(0.3, dtype=torch.float64)
    noise = torch.randn(SHAPE, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(inputs[0], schedule.alpha(t) * plan + 0.5 * schedule.sigma(t) * noise)
    assert len(inputs) == 4


def test_candidates_are_rows_of_their_own_with_repeated_conditions():
    value, mask = history()
    cond = {"shift": torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)}
    options = {"steps": 3, "generator": seeded(), "dtype": torch.float32}
    sample = make_sampler().sample(network, SHAPE, cond=cond, known=(value, mask), candidates=4, **options)
    assert sample.x.shape == (3, 4, 4, 2, 5)
    assert torch.equal(sample.x[:, :, :2], value[:, None, :2].expand(-1, 4, -1, -1, -1))
    flat = make_sampler().sample(
        network,
        (12, *SHAPE[1:]),
        steps=3,
        generator=seeded(),
        cond={"shift": torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(4).view(12, 1, 1, 1)},
        known=(value.repeat_interleave(4, 0), mask),
    )
    assert torch.equal(sample.x.flatten(0, 1), flat.x)
    assert (sample.x[:, 0] - sample.x[:, 1]).abs()[:, 2:].min() > 0


def test_context_names_the_level_of_every_moment_also_between_the_stages_of_a_step():
    class Watch(Hook):
        def predict(self, pred, x, t, ctx):
            predicted.append(ctx["level"].sigma)
            assert (t == ctx["level"].sigma).all()
            return pred

        def after(self, x_prev, x_next, x0_hat, t, s, ctx):
            assert (t == ctx["level"].sigma).all() and (s == ctx["next_level"].sigma).all()
            return x_next, {}

    predicted = []
    make_sampler("edm", "edm", "edm_heun", [Watch()]).sample(
        network, SHAPE, steps=3, generator=seeded(), dtype=torch.float64
    )
    grid = make_schedule("edm").grid(3).tolist()
    assert predicted == pytest.approx([grid[0], grid[1], grid[1], grid[2], grid[2]])


def test_context_reaches_hooks_and_stays_the_callers():
    class Budget(Hook):
        def final(self, x, ctx):
            return x * ctx["budget"], {}

    context = {"budget": 0.0}
    sample = make_sampler(hooks=[Budget()]).sample(network, SHAPE, steps=1, generator=seeded(), context=context)
    assert (sample.x == 0).all() and context == {"budget": 0.0}


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_same_generator_same_sample(solver):
    first, second, other = (
        make_sampler(solver=solver).sample(network, SHAPE, steps=5, generator=seeded(seed)).x for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.allclose(first, other)


def test_gradients_flow_through_the_chain():
    scale = torch.tensor(0.5, requires_grad=True)
    sample = make_sampler().sample(lambda x, t, cond: scale * x, SHAPE, steps=3, generator=seeded())
    (gradient,) = torch.autograd.grad(sample.x.sum(), scale)
    assert math.isfinite(gradient.item()) and gradient.item() != 0


@pytest.mark.parametrize("rederive", [False, True])
def test_clipping_bounds_the_clean_estimate(rederive):
    class Check(Hook):
        def predict(self, pred, x, t, ctx):
            level = ctx["level"]
            rebuilt = level.alpha * pred.x0 + level.sigma * pred.eps
            matches.append(torch.allclose(rebuilt, x, atol=1e-5))
            assert pred.x0.abs().max() <= 0.3
            return pred

    matches = []
    sampler = make_sampler(hooks=[ClipX0(-0.3, 0.3, rederive), Check()])
    sample = sampler.sample(network, SHAPE, steps=4, generator=seeded())
    assert sample.x.abs().max() <= 0.3
    assert all(matches) == rederive


def test_precision_follows_the_inputs():
    value, mask = history()
    sample = make_sampler().sample(network, SHAPE, steps=2, generator=seeded(), known=(value.double(), mask))
    assert sample.x.dtype == torch.float64
    sample = make_sampler().sample(network, SHAPE, steps=2, generator=seeded(), dtype=torch.bfloat16)
    assert sample.x.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "call",
    [
        lambda: make_sampler("cosine", "epsilon", "flow_euler"),
        lambda: make_sampler().sample(network, SHAPE, steps=2, generator=seeded(), candidates=0),
        lambda: make_sampler().sample(
            network, SHAPE, steps=2, generator=seeded(), known=(torch.zeros(9), torch.ones(9))
        ),
    ],
)
def test_mistakes_name_what_is_allowed(call):
    with pytest.raises(ValueError, match="allowed: "):
        call()
