"""Critics of noisy plans against brute force and analytic answers, and margins that cover what they promise."""

import copy
import math

import numpy as np
import pytest
import torch

from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.values.limits import LARGEST, Calibration, conformal_margin, held_out
from madiff.values.plan_critic import PlanCritic, pinball
from madiff.values.plan_values import LEVELS, PlanValueConfig, PlanValues, ReturnGuidance, plan_labels

CPU = torch.device("cpu")
SPEC = EnvironmentSpec("toy", "toy", 2, 3, 2, False, 0, 20)


def store(episodes=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in range(4, 4 + episodes):
        rows.append({
            "observations": torch.rand(length + 1, 2, 3, generator=generator),
            "actions": 2 * torch.rand(length, 2, 2, generator=generator) - 1,
            "rewards": torch.rand(length, 2, generator=generator),
            "costs": (torch.rand(length, 2, generator=generator) < 0.3).float(),
            "terminated": length % 2 == 0,
        })  # fmt: skip
    return EpisodeStore.from_arrays(rows)


def values(head="mean", quantities=("return", "cost"), seed=0, **options):
    schedule = make_schedule("cosine", 20)
    config = PlanValueConfig(head=head, width=8, multipliers=(1, 2), **options)
    return PlanValues(config, SPEC, 3, 4, quantities, schedule, make_parametrization("x0", schedule), CPU, seed)


def window_batch(data, now):
    source = WindowSampler(data, history=0, horizon=3, batch_size=8)
    return source.gather(torch.as_tensor(now))


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_labels_are_the_rest_of_the_episode_against_a_loop(discount):
    data = store()
    labels = plan_labels(data, discount, penalty=2.0)
    for e in range(data.episodes):
        first, length = int(data.offsets[e]), int(data.lengths[e])
        for k in range(length):
            gammas = discount ** np.arange(length - k)
            rest = slice(first + k, first + length)
            ends = 2.0 * gammas[-1] * bool(data.terminated[e])
            expected = (gammas @ data.rewards[rest].mean(1).numpy() - ends,
                        gammas @ data.costs[rest].mean(1).numpy() + ends)  # fmt: skip
            assert labels[first + k].tolist() == pytest.approx(expected, rel=1e-5)


def test_members_are_independent_and_the_batched_product_equals_networks_alone():
    torch.manual_seed(0)
    critic = PlanCritic(3, 5, members=2, outputs=1, width=8, multipliers=(1, 2)).double()
    x, t, elapsed = torch.randn(4, 5, 2, 3).double(), torch.rand(4).double(), torch.rand(4).double()
    both = critic(x, t, elapsed)
    for member in range(2):
        alone = PlanCritic(3, 5, members=1, outputs=1, width=8, multipliers=(1, 2)).double()
        theirs = critic.state_dict()
        for name, parameter in alone.named_parameters():
            whole = theirs[name]
            parameter.data = whole if whole.shape == parameter.shape else whole.chunk(2)[member].clone()
        torch.testing.assert_close(alone(x, t, elapsed)[:, 0], both[:, member])
    assert (both[:, 0] - both[:, 1]).abs().min() > 1e-4


def test_the_order_of_agents_does_not_matter_and_time_does():
    torch.manual_seed(0)
    critic = PlanCritic(3, 5, members=1, outputs=2, width=8)
    x, t, elapsed = torch.randn(4, 5, 2, 3), torch.rand(4), torch.rand(4)
    torch.testing.assert_close(critic(x.flip(2), t, elapsed), critic(x, t, elapsed))
    assert (critic(x, t, elapsed) - critic(x, t, 1 - elapsed)).abs().max() > 1e-4
    assert (critic(x, t, elapsed) - critic(x, 1 - t, elapsed)).abs().max() > 1e-4
    assert (critic(x, t, elapsed) - critic(x.flip(1), t, elapsed)).abs().max() > 1e-4


@pytest.mark.parametrize("length", [2, 3, 8, 13])
def test_any_length_of_plan(length):
    assert PlanCritic(3, length, members=3, outputs=1, width=4)(
        torch.randn(2, length, 1, 3), torch.rand(2), torch.rand(2)
    ).shape == (2, 3, 1)


def test_an_impossible_width_is_a_users_error():
    with pytest.raises(UserError, match=r"algo\.values"):
        schedule = make_schedule("cosine", 20)
        PlanValues(PlanValueConfig(width=6), SPEC, 3, 4, ("return",), schedule, make_parametrization("x0", schedule),
                   CPU, 0)  # fmt: skip


def test_pinball_is_least_at_the_quantiles():
    sample = torch.randn(4001, generator=torch.Generator().manual_seed(0)).exp()
    levels = torch.tensor(LEVELS)
    grid = torch.linspace(0, 8, 1601)
    loss = pinball(grid[:, None, None].expand(-1, 1, len(levels)), sample[None].expand(1601, -1).mean(1)[:, None],
                   levels)  # fmt: skip
    assert loss.shape == (1601, 1, len(levels))
    for i, level in enumerate(LEVELS):
        mean_loss = pinball(grid[:, None, None].expand(-1, len(sample), 1), sample.expand(1601, -1),
                            levels[i : i + 1]).mean((1, 2))  # fmt: skip
        assert float(grid[mean_loss.argmin()]) == pytest.approx(float(sample.quantile(level)), abs=0.02)


@pytest.mark.parametrize("head", ["mean", "ensemble", "quantile"])
def test_critics_learn_what_a_plan_says_of_its_cost(head):
    """One step; the cost is the first observation and noise, the return its negative: known in closed form."""
    generator = torch.Generator().manual_seed(0)
    shown = torch.rand(1500, 1, 1, generator=generator)
    noise = torch.rand(1500, 1, 1, generator=generator) - 0.5
    rows = [{"observations": torch.cat([s, s])[:, None].expand(2, 1, 1), "actions": torch.zeros(1, 1, 1),
             "rewards": -s[0], "costs": (s + n + 0.5)[0], "terminated": True}
            for s, n in zip(shown, noise, strict=True)]  # fmt: skip
    data = EpisodeStore.from_arrays(rows)
    schedule = make_schedule("cosine", 200)
    spec = EnvironmentSpec("toy", "toy", 1, 1, 1, False, 0, 1)
    config = PlanValueConfig(head=head, width=8, multipliers=(1,), learning_rate=5e-3)
    critics = PlanValues(config, spec, 1, 2, ("return", "cost"), schedule, make_parametrization("x0", schedule), CPU, 0)
    critics.fit(data)
    source = WindowSampler(data, history=0, horizon=1, batch_size=128)
    for _ in range(600):
        batch = source.sample(generator)
        critics.update(batch["observations"], None, batch, generator)
    x = torch.linspace(0.1, 0.9, 9).view(-1, 1, 1, 1).expand(-1, 2, 1, 1)
    with torch.no_grad():
        found = critics.estimates(x, critics.clean, torch.zeros(9))
    assert torch.allclose(found["cost"].mean, x[:, 0, 0, 0] + 0.5, atol=0.1)
    assert torch.allclose(found["return"].mean, -x[:, 0, 0, 0], atol=0.1)
    if head == "quantile":  # of a uniform variable of width 1: the 95th percentile less the fifth
        spread = {name: estimate.out[:, 0, -1] - estimate.out[:, 0, 0] for name, estimate in found.items()}
        assert torch.allclose(spread["cost"], torch.full((9,), 0.9), atol=0.2)
        assert spread["return"].max() < 0.3
    # at pure noise the plan says nothing: the estimate is the mean of all
    (noisiest,) = schedule.levels(torch.tensor([1.0]))
    blind = critics.estimates(torch.randn(200, 2, 1, 1, generator=generator), noisiest, torch.zeros(200))
    assert abs(float(blind["cost"].mean.mean()) - 1.0) < 0.1


def test_held_out_episodes_teach_nothing():
    data = store(episodes=20)
    critics = values(held_out=0.5)
    critics.fit(data)
    assert int(critics.aside.sum()) == 10
    aside = critics.aside[data.episode_of].nonzero()[:, 0]
    before = copy.deepcopy(critics.critic.state_dict())
    batch = window_batch(data, aside[:8])
    losses = critics.update(batch["observations"][:, :4], None, batch, torch.Generator().manual_seed(0))
    assert all(float(loss) == 0 for loss in losses.values())
    assert all(torch.equal(before[k], v) for k, v in critics.critic.state_dict().items())
    batch = window_batch(data, (~critics.aside[data.episode_of]).nonzero()[:8, 0])
    critics.update(batch["observations"][:, :4], None, batch, torch.Generator().manual_seed(0))
    assert any(not torch.equal(before[k], v) for k, v in critics.critic.state_dict().items())


def test_known_entries_stay_clean_in_training():
    data, critics, seen = store(), values(), []
    critics.fit(data)
    critics.critic.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batch = window_batch(data, range(8))
    x = batch["observations"][:, :4]
    mask = torch.zeros_like(x)
    mask[:, 0] = 1
    critics.update(x, mask, batch, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0][:, 0], x[:, 0])
    assert (seen[0][:, 1:] != x[:, 1:]).all()


def test_state_round_trip_continues_bit_for_bit():
    data = store()
    first, second = values("ensemble"), values("ensemble", seed=3)
    batch = window_batch(data, range(8))
    for critics in (first, second):
        critics.fit(data)
    for step in range(3):
        first.update(batch["observations"][:, :4], None, batch, torch.Generator().manual_seed(step))
    first.calibrate(batch["observations"][:, :4], batch)
    second.load_weights(first.weights())
    second.load_training_state(copy.deepcopy(first.training_state()))
    for critics in (first, second):
        critics.update(batch["observations"][:, :4], None, batch, torch.Generator().manual_seed(9))
    assert all(torch.equal(x, y) for x, y in zip(first.weights().values(), second.weights().values(), strict=True))


def test_auto_learns_costs_where_there_are_some():
    config = PlanValueConfig()
    assert config.quantities(costs=True, returns=False) == ("return", "cost")
    assert config.quantities(costs=False, returns=True) == ("return",)
    assert config.quantities(costs=False, returns=False) == ()
    assert PlanValueConfig(learn="none").quantities(True, True) == ()
    assert PlanValueConfig(learn="both").quantities(False, False) == ("return", "cost")


def test_guidance_is_the_gradient_of_the_return_times_the_step_s_variance():
    """Against finite differences of the estimates, and DDPM's posterior variance by its textbook formula."""
    data, critics = store(), values()
    critics.fit(data)
    schedule = critics.schedule
    levels = schedule.levels(schedule.grid(5))
    level, following = levels[1], levels[2]
    x, time = torch.randn(3, 4, 2, 3), torch.tensor([0.0, 5.0, 10.0])
    ctx = {"level": level, "next_level": following, "known": None, "candidates": 1, "time": time}
    moved = ReturnGuidance(critics, scale=0.7, repeats=1).before(x, torch.full((3,), level.t), ctx) - x
    beta = 1 - (level.alpha / following.alpha) ** 2
    variance = beta * (1 - following.alpha**2) / (1 - level.alpha**2)
    critics.average.model.double()
    x, h = x.double(), 1e-5
    for index in [(0, 0, 0, 0), (1, 2, 1, 2), (2, 3, 0, 1)]:
        step = torch.zeros_like(x)
        step[index] = h
        ends = [critics.estimates(x + s, level, critics.elapsed(time))["return"].mean for s in (step, -step)]
        slope = float((ends[0] - ends[1])[index[0]] / (2 * h) / critics.unit("return"))
        assert float(moved[index]) == pytest.approx(0.7 * variance * slope, rel=1e-2, abs=1e-6)


def test_guidance_raises_the_estimated_return_of_a_sample():
    data, critics = store(), values()
    critics.fit(data)
    schedule = critics.schedule

    def sample(*hooks):
        sampler = Sampler(schedule, critics.parametrization, make_solver("ddim"), hooks)
        return sampler.sample(lambda x, t, cond: 0.5 * x, (16, 4, 2, 3), steps=10, context={"time": torch.zeros(16)},
                              generator=torch.Generator().manual_seed(0)).x  # fmt: skip

    plain, guided = sample(), sample(ReturnGuidance(critics, scale=3.0))
    worth = [critics.estimates(x, critics.clean, torch.zeros(16))["return"].mean for x in (plain, guided)]
    assert (worth[1] > worth[0]).all()
    assert torch.equal(sample(ReturnGuidance(critics, scale=3.0, t_stop=2.0)), plain)


# margins


def test_the_margin_is_the_right_order_statistic():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.7, -0.2, 1.1, 0.5, 0.9])
    assert float(conformal_margin(scores, 0.9)) == 2.0  # ceil(10 * 0.9) = 9th of 9
    assert float(conformal_margin(scores, 0.5)) == pytest.approx(0.5)  # 5th
    assert math.isinf(conformal_margin(scores, 0.91))


@pytest.mark.parametrize(("coverage", "n"), [(0.9, 30), (0.8, 9), (0.5, 15)])
def test_margins_cover_new_episodes_as_often_as_promised(coverage, n):
    """However wrong the estimate: coverage over fresh calibrations is at least asked for and at most 1/(n+1) more."""
    generator = torch.Generator().manual_seed(0)
    trials = 20_000
    truth = torch.randn(trials, n + 1, generator=generator).exp()
    estimate = truth.sqrt() - 3 + torch.rand(trials, n + 1, generator=generator)  # biased and noisy
    spread = 0.5 + torch.rand(trials, n + 1, generator=generator)
    scores = (truth - estimate) / spread
    margins = torch.stack([conformal_margin(row[:-1], coverage) for row in scores[:4000]])
    covered = (truth[:4000, -1] <= estimate[:4000, -1] + margins * spread[:4000, -1]).double().mean()
    slack = 3 * math.sqrt(coverage * (1 - coverage) / 4000)
    assert coverage - slack <= float(covered) <= coverage + 1 / (n + 1) + slack


@pytest.mark.parametrize("head", ["mean", "ensemble", "quantile"])
def test_calibrated_critics_cover_episodes_they_have_not_seen(head):
    """Critics that were never trained, on costs drawn alike: the margin alone has to do it."""
    data, new = store(episodes=240), store(episodes=240, seed=1)
    critics = values(head, held_out=0.5)
    critics.fit(data)
    batch = window_batch(data, critics.calibration_rows)
    critics.calibrate(batch["observations"][:, :4], batch)
    caution = critics.caution(0.8)
    _, time = held_out(new.lengths, 1.0, torch.Generator().manual_seed(5))
    batch = window_batch(new, new.offsets + time)
    cost = critics.estimates(batch["observations"][:, :4], critics.clean, critics.elapsed(batch["time"]))["cost"]
    truth = plan_labels(new, 1.0)[new.offsets + time, 1]
    covered = float((truth <= critics.bound(cost, caution)).double().mean())
    assert 0.7 <= covered <= 0.9
    assert torch.equal(critics.bound(cost, critics.caution(None)), cost.mean)


def test_bounds_are_the_quantiles_of_what_the_critics_say():
    out = torch.tensor([[[3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]]])
    critics = values("quantile")
    for coverage, expected in ((0.05, 1.0), (0.9, 9.5), (0.95, 10.0), (0.99, 10.0), (0.5, 5.5), (0.01, 1.0)):
        assert float(critics._bound(out, coverage)) == pytest.approx(expected, abs=1e-4)
    members = torch.tensor([[[1.0], [2.0], [3.0]]])
    expected = 2 + torch.distributions.Normal(0, 1).icdf(torch.tensor(0.9)) * math.sqrt(2 / 3)
    assert float(values("ensemble")._bound(members, 0.9)) == pytest.approx(float(expected), abs=1e-4)
    assert float(values("mean")._bound(torch.tensor([[[2.5]]]), 0.9)) == 2.5


def test_too_few_episodes_promise_nothing():
    calibration, zero = Calibration(1), lambda out: out[:, 0]
    calibration.fit(torch.zeros(8, 1), torch.rand(8))
    with pytest.raises(UserError, match="it takes 9"):
        calibration.margin(zero, 0.9)
    with pytest.raises(UserError, match="probability"):
        calibration.margin(zero, 1.0)
    calibration.fit(torch.ones(9, 1), torch.arange(9.0))
    assert calibration.margin(zero, 0.9) == 7.0
    again = Calibration(1)
    again.load_state_dict(calibration.state_dict())
    assert again.margin(zero, 0.5) == 3.0
    assert again.margin(lambda out: 100 * out[:, 0], 0.5) == 0.0  # never below the bound itself


def test_one_step_of_each_held_out_episode():
    lengths = torch.tensor([1, 50, 3, 8] * 500)
    chosen, time = held_out(lengths, 0.4, torch.Generator().manual_seed(0))
    assert len(chosen) == len(chosen.unique()) == LARGEST
    assert (time >= 0).all() and (time < lengths[chosen]).all()
    long = time[lengths[chosen] == 50].double()
    assert 20 < long.mean() < 30
    assert len(held_out(torch.tensor([3]), 0.4, torch.Generator())[0]) == 0
