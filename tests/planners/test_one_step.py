"""The student that plans in one call: its loss, what it learns, and who may act with it."""

import pytest
import torch

from madiff.data.store import EpisodeStore
from madiff.diffusion.objective import distillation_loss
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.planners import madiff_c, madiff_d
from madiff.planners.madiff import MADiff
from tests.planners.test_madiff import CPU, learner, store


@pytest.mark.parametrize("name", ["x0", "epsilon", "v"])
def test_the_loss_is_the_distance_from_the_sampler_with_one_step(name):
    schedule = make_schedule("cosine", steps=100)
    parametrization = make_parametrization(name, schedule)

    def network(x, t, cond):
        return torch.tanh(x + cond["shift"].view(-1, 1, 1, 1) * t.view(-1, 1, 1, 1))

    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(3) == 0).float().view(1, 3, 1, 1).expand(x.shape)
    cond = {"shift": torch.linspace(0, 1, 4)}
    loss = distillation_loss(
        network, x, noise, cond, schedule=schedule, parametrization=parametrization, temperature=0.7, known_mask=mask
    )
    one = Sampler(schedule, parametrization, make_solver("ddim")).sample(
        network, x.shape, steps=1, generator=torch.Generator(), cond=cond, known=(x, mask), noise=noise, temperature=0.7
    )
    assert torch.allclose(loss, (one.x - x)[:, 1:].square().mean(), rtol=1e-4)


def two_ways() -> EpisodeStore:
    """Both agents go left together or right together: the mean of the data is what nobody ever does."""
    sides = torch.randint(2, (400,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    way = torch.linspace(0, 1, 6)[:, None, None].expand(6, 2, 1)
    return EpisodeStore.from_arrays([
        {"observations": side * way, "actions": side * torch.ones(5, 2, 1), "rewards": torch.ones(5, 2),
         "terminated": True} for side in sides
    ])  # fmt: skip


def test_a_student_keeps_the_ways_apart_where_one_step_of_the_teacher_cannot():
    game = EnvironmentSpec("ways", "two", 2, 1, 1, False, 0, 5)
    config = madiff_c.Config(
        width=32, layers=1, heads=2, history=0, horizon=4, batch_size=64, inverse_width=16, distill_every=1,
        ema_start=300, ema_every=1, temperature=1.0, learning_rate=2e-3,
    )  # fmt: skip
    method = MADiff(config, game, CPU, seed=0)
    source, generator = method.batches(two_ways()), torch.Generator()
    for step in range(700):
        generator.manual_seed(step)
        method.update(source.sample(generator), generator)
    ends = {}
    for name, options in {"several": {}, "one": {"sampler_steps": 1}, "student": {"one_step": True}}.items():
        method.config = madiff_c.Config(**{**vars(config), **options})
        policy = method.policy()
        policy.reset(0, 200)
        noise = torch.randn(200, 5, 2, 3, generator=torch.Generator().manual_seed(0))
        start = method.preprocessing.encode(torch.zeros(200, 2, 1))[:, None]
        with torch.no_grad():
            plans = policy.plan(start, torch.zeros(200, dtype=torch.int64), noise, torch.ones(200, 2))
        ends[name] = plans[:, -1, :, 2]
        assert policy.network_calls_per_decision == (5 if name == "several" else 1)
    reach = {name: float(end.abs().mean()) for name, end in ends.items()}
    assert reach["one"] < 0.5 * reach["several"] and reach["student"] > 0.8 * reach["several"], reach
    assert (ends["student"].sign() == ends["several"].sign()).float().mean() > 0.9


def update(method, steps, start=0):
    source, generator = method.batches(store()), torch.Generator()
    for step in range(start, start + steps):
        generator.manual_seed(step)
        method.update(source.sample(generator), generator)


@pytest.mark.parametrize("room", [madiff_c, madiff_d])
def test_a_resumed_student_is_an_unbroken_one(room):
    whole, first, second = (learner(room, distill_every=2) for _ in range(3))
    update(whole, 6)
    update(first, 3)
    second.load_weights(first.weights())
    second.load_training_state(first.training_state())
    update(second, 3, start=3)
    assert whole.student.updates == 2 + 1
    assert all(torch.equal(value, second.weights()[name]) for name, value in whole.weights().items())


def test_a_student_changes_nothing_of_its_teacher_but_the_draws():
    method = learner(madiff_d, distill_every=1)
    before = {name: value.clone() for name, value in method.networks.state_dict().items()}
    batch = method.batches(store()).sample(torch.Generator().manual_seed(0))
    method.updates = 1
    method._distill(batch["observations"], method.asked(batch), torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[name]) for name, value in method.networks.state_dict().items())
    assert method.student.updates == 1


def test_the_return_asked_for_is_what_acting_would_ask_for():
    """Along an episode of the data, what `receive` leaves of the target."""
    method = learner(madiff_d)
    data = store()
    batch = method.batches(data).gather(torch.arange(int(data.lengths[0])))
    policy = method.policy()
    policy.reset(0, 1)
    for t, asked in enumerate(method.asked(batch)):
        assert torch.allclose(policy.target[0], asked, atol=1e-5)
        policy.receive(data.rewards[t][None])


def test_only_a_student_that_learnt_may_act():
    with pytest.raises(UserError, match="algo.one_step.*distill_every"):
        learner(madiff_d, one_step=True)
    with pytest.raises(UserError, match="algo.solver.*ddim"):
        learner(madiff_d, distill_every=1, solver="ddpm")
    with pytest.raises(UserError, match="no student|needs"):
        learner(madiff_d, distill_every=1).load_weights(learner(madiff_d).weights())
