"""FISOR: every loss by loops, the three kinds of weight, a feasible region in closed form, and what acts."""

import math

import pytest
import torch

from baselines import fisor
from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec
from madiff.values import Transitions
from tests.baselines.constrained_toys import learner
from tests.baselines.toys import ACTIONS, AGENTS, CPU, OBSERVATION, batch_of


def prepared(**options):
    made, source = learner(fisor, **options)
    for target in made.targets.values():
        for parameter in target.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    batch = batch_of(source)
    return made, batch, Transitions.of(batch, made.scale)


@torch.no_grad()
def test_value_losses_by_loops():
    made, batch, steps = prepared()
    costly = batch["costs"][:, 0].sum(-1) > 0
    hazards = torch.where(costly, 25.0, -1.0)[:, None].expand(-1, AGENTS)
    sums = dict.fromkeys(("value", "hazard_value", "critic", "hazard_critic"), 0.0)
    for b in range(16):
        for i in range(AGENTS):
            now, after = steps.observations[b, i], steps.next_observations[b, i]
            value, hazard_value, value_after, hazard_after = (
                float(made.networks[name](seen)[0, 0])
                for seen in (now, after) for name in ("value", "hazard_value")
            )  # fmt: skip
            u = min(made.targets["critic"].model(now, steps.actions[b, i]).tolist()) - value
            sums["value"] += (0.9 if u > 0 else 0.1) * u**2
            u = max(made.targets["hazard_critic"].model(now, steps.actions[b, i]).tolist()) - hazard_value
            sums["hazard_value"] += (0.9 if u < 0 else 0.1) * u**2
            h, ends = float(hazards[b, i]), bool(steps.terminated[b])
            aim = float(steps.rewards[b, i]) + (0.0 if ends else 0.99 * value_after)
            hazard_aim = h if ends else 0.01 * h + 0.99 * max(h, hazard_after)
            for name, goal in (("critic", aim), ("hazard_critic", hazard_aim)):
                sums[name] += sum((float(v) - goal) ** 2 for v in made.networks[name](now, steps.actions[b, i]))
    found = (made.value_loss(steps), made.hazard_value_loss(steps), made.critic_loss(steps),
             made.hazard_loss(steps, hazards))  # fmt: skip
    for name, loss in zip(sums, found, strict=True):
        assert math.isclose(float(loss), sums[name] / (16 * AGENTS), rel_tol=1e-4), name


def test_three_kinds_of_weight(monkeypatch):
    made, _, steps = prepared()
    shape = steps.rewards.shape
    cases = [  # V_h, Q_h, Q - V: what the data's action is worth
        (1.0, 0.8, 9.0, math.exp(5 * 0.2)),  # unsafe: the less hazard the better, whatever the reward
        (25.0, -1.0, 0.0, 150.0),
        (-0.5, -0.1, 0.2, math.exp(10 * 0.2)),  # safe
        (0.0, 0.0, 3.0, 100.0),
        (-0.5, 0.1, 9.0, 0.0),  # leads out of the feasible region
    ]
    for least, hazard, advantage, expected in cases:
        monkeypatch.setattr(made, "slow_values", lambda s, q=advantage, h=hazard: (
            torch.full(shape, q), torch.full(shape, h)))  # fmt: skip
        monkeypatch.setattr(made, "at", lambda name, o, v=least: torch.full(shape, v if "hazard" in name else 0.0))
        assert torch.allclose(made.weights_of(steps), torch.full(shape, expected), rtol=1e-5)


@pytest.mark.parametrize("sizes", [(), (ACTIONS, 3, 1)])
@torch.no_grad()
def test_the_denoising_error_is_weighted_per_agent(sizes):
    made, batch, steps = prepared(sizes=sizes)
    weight = torch.rand(16, AGENTS)
    generator = torch.Generator().manual_seed(0)
    loss = made.actor_loss(steps, weight, generator)
    generator.manual_seed(0)
    level_of = made.schedule.sample_times(16, generator, CPU)
    noise = torch.randn(16, 1, AGENTS, ACTIONS, generator=generator)
    expected = 0.0
    for b in range(16):
        level = made.schedule.level(level_of[b : b + 1])
        alpha, sigma = float(level.alpha), float(level.sigma)
        x = alpha * steps.actions[b : b + 1, None] + sigma * noise[b : b + 1]
        if sizes:
            x = torch.where(made.real, x, 0.0)
        condition = {"observation": steps.observations[b : b + 1]}
        told = made.networks["actor"](x, level_of[b : b + 1], condition)[0, 0]
        for i in range(AGENTS):
            error = (told[i] - noise[b, 0, i])[: (sizes or (ACTIONS,) * AGENTS)[i]]
            expected += float(weight[b, i] * error.square().sum()) / (16 * AGENTS)
    assert math.isclose(float(loss), expected, rel_tol=1e-4)


def test_the_hazard_of_a_corridor_in_closed_form():
    """Three rooms; the last costs, one step from the first does not: V_h = -1 for ever, or what is known to come."""
    rows = []
    for start, away in ((0, True), (0, False), (1, False), (2, False)) * 40:
        path = [0] * 4 if away else list(range(start, 3)) + [2] * (1 + start)
        path = path[:4]
        rows.append({
            "observations": torch.nn.functional.one_hot(torch.tensor(path), 3).float()[:, None],
            "actions": torch.full((3, 1, 1), -0.5 if away else 0.5),
            "rewards": torch.zeros(3, 1),
            "costs": (torch.tensor(path[:-1]) == 2).float()[:, None],
            "terminated": False,
        })  # fmt: skip
    spec = EnvironmentSpec("corridor", "corridor", 1, 3, 1, False, 0, 3)
    config = fisor.Config(
        width=32, batch_size=128, learning_rate=3e-3, target_rate=0.05, discount=0.5, hazard=2.0, normalizer="none"
    )
    made = fisor.make(config, spec, CPU, 0)
    source, generator = made.batches(EpisodeStore.from_arrays(rows)), torch.Generator().manual_seed(0)
    for _ in range(400):
        batch = source.sample(generator)
        steps = Transitions.of(batch, made.scale)
        hazards = torch.where(batch["costs"][:, 0].sum(-1) > 0, 2.0, -1.0)[:, None]
        made.descend({"hazard_value": made.hazard_value_loss(steps), "hazard_critic": made.hazard_loss(steps, hazards)})
        made.finish_update()
    rooms = made.encoder.encode(torch.eye(3)[:, None])
    with torch.no_grad():
        critic = made.networks["hazard_critic"]
        stay, go = (critic(rooms[:, 0], torch.full((3, 1), a)).mean(0) for a in (-0.5, 0.5))
    # in the last room 2; from the second (1 - g)(-1) + g 2 = 0.5; from the first -1 staying, (1 - g)(-1) + g 0.5 going
    assert abs(float(stay[0]) + 1.0) < 0.15 and abs(float(go[0]) + 0.25) < 0.15
    assert abs(float(go[1]) - 0.5) < 0.15 and abs(float(go[2]) - 2.0) < 0.15


def test_the_least_hazardous_candidate_acts():
    made, _ = learner(fisor, candidates=5)
    policy, observations = made.policy(), torch.rand(4, AGENTS, OBSERVATION)
    policy.reset(seed=1, n=4)
    acted, encoded = policy.act(observations, None), made.encoder.encode(observations)
    proposed = policy.propose(encoded, torch.Generator().manual_seed(1))
    assert proposed.shape == (5, 4, AGENTS, ACTIONS)
    hazard = made.targets["hazard_critic"].model
    for n in range(4):
        for i in range(AGENTS):
            hazards = [max(hazard(encoded[n, i], actions[n, i]).tolist()) for actions in proposed]
            assert torch.allclose(acted[n, i], proposed[hazards.index(min(hazards)), n, i], atol=1e-6)
