"""OMIGA: the soft value in closed form, and every loss by loops."""

import math

import pytest
import torch

from baselines import omiga
from madiff.values import Transitions
from tests.baselines.test_qmix import one_step
from tests.baselines.toys import AGENTS, CPU, batch_of, learner, spec


def test_the_soft_value_makes_the_exponential_average_to_one():
    """Minimised over V, the loss gives V = (temperature / w) log mean exp(w Q / temperature)."""
    weight, temperature = 0.7, 0.5
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    estimate = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([estimate], lr=0.05)
    for _ in range(200):
        z = weight * (values - estimate) / temperature
        loss = omiga.soft_value_loss(z, (weight * estimate / temperature).expand(2000))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    closed = temperature / weight * math.log(float((weight * values / temperature).exp().mean()))
    assert abs(float(estimate.detach()) - closed) < 1e-2


def test_a_value_far_too_low_rises():
    value = torch.tensor([-50.0], requires_grad=True)
    omiga.soft_value_loss((0.0 - value) / 0.5, value / 0.5).backward()
    assert value.grad < 0


@pytest.mark.parametrize("discrete", [True, False])
def test_losses_by_loops(discrete):
    made, source = learner(omiga, discrete, temperature=0.3)
    for target in made.targets.values():  # so that slow and trained networks disagree
        for parameter in target.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = batch_of(source)
    steps, state = Transitions.of(batch, made.scale), made.states(batch)
    critic, slow = made.networks["critic"], made.targets["critic"].model
    with torch.no_grad():
        value = made.networks["value"](steps.observations)[0, ..., 0]
        slow_value = made.targets["value"].model(steps.next_observations)[0, ..., 0]
        log_prob = made.likelihood(steps)
        errors, cloned, zs, scaled = [], [], [], []
        for b in range(16):
            weight, bias = slow.mixer.weights(state[b, 1])
            following = sum(weight[i] * slow_value[b, i] for i in range(AGENTS)) + bias
            aim = steps.rewards[b].mean() + (0.0 if steps.terminated[b] else 0.99) * following
            for member in range(2):
                total = critic.mixer.weights(state[b, 0])[1]
                for i in range(AGENTS):
                    own = critic.values(steps.observations[b : b + 1], steps.actions[b : b + 1])[member, 0, i]
                    total = total + critic.mixer.weights(state[b, 0])[0][i] * own
                errors.append((total - aim).square())
            for i in range(AGENTS):
                local = slow.values(steps.observations[b : b + 1], steps.actions[b : b + 1])[:, 0, i].min()
                w = slow.mixer.weights(state[b, 0])[0][i]
                zs.append(float(w * (local - value[b, i]) / 0.3))
                scaled.append(float(w * value[b, i] / 0.3))
                cloned.append(math.exp(zs[-1]) * float(log_prob[b, i]))
        largest = max(-1.0, *zs)
        soft = sum(math.exp(z - largest) + math.exp(-largest) * v for z, v in zip(zs, scaled, strict=True)) / len(zs)
    found = made.update(batch, torch.Generator())
    assert math.isclose(float(found["critic_loss"]), 2 * float(torch.stack(errors).mean()), rel_tol=1e-4)
    assert math.isclose(float(found["value_loss"]), soft, rel_tol=1e-4)
    assert math.isclose(float(found["actor_loss"]), -sum(cloned) / len(cloned), rel_tol=1e-4)


@pytest.mark.parametrize("terminated", [True, False])
def test_truncation_bootstraps_and_termination_does_not(terminated):
    made = omiga.make(omiga.Config(width=8, batch_size=2), spec(state=False), CPU, 0)
    batch = batch_of(made.batches(one_step(terminated)))
    steps, state = Transitions.of(batch, made.scale), made.states(batch)
    local = made.networks["critic"].values(steps.observations, steps.actions)
    total = made.networks["critic"].mixer(local, state[:, 0])
    following = made.networks["critic"].mixer(made.networks["value"](steps.next_observations)[0, ..., 0], state[:, 1])
    aim = made.scale(torch.ones(())) + (0.0 if terminated else 0.99) * following
    expected = (total - aim).square().mean(-1).sum()
    assert torch.allclose(made.critic_loss(steps, *state.unbind(1)), expected)


@pytest.mark.parametrize("discrete", [True, False])
def test_a_better_action_is_cloned_more(discrete):
    """One observation, one step: of equally frequent actions the one that pays is chosen."""
    made, source = learner(omiga, discrete, temperature=0.1, learning_rate=1e-2, target_rate=0.05)
    source.batch_size = 256
    batch = batch_of(source)
    batch = {name: value[:1].expand(value.shape) if name in ("observations", "state") else value
             for name, value in batch.items()}  # fmt: skip
    good = (batch["actions"] == 2) if discrete else (batch["actions"][..., 0] > 0.5)
    batch |= {"rewards": good.float() * 5, "terminated": torch.ones_like(batch["terminated"])}
    if discrete:
        batch["available_actions"] = torch.ones_like(batch["available_actions"])
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        made.update(batch, generator)
    output = made.networks["actor"](batch["observations"][:1, :1])[0]
    actions = made.head.greedy(output, None)
    assert (actions == 2).all() if discrete else (actions[..., 0] > 0.4).all()
