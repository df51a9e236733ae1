"""CFCQL: every counterfactual by loops, for discrete and for continuous actions."""

import pytest
import torch
from torch.nn.functional import softmax

from baselines import cfcql
from madiff.values import uniform_actions
from tests.baselines.test_qmix import one_step, penalty_inputs
from tests.baselines.toys import ACTIONS, AGENTS, CPU, batch_of, learner, spec


def shares(temperature, distance):
    return softmax(temperature * torch.stack(distance), 0) if temperature else torch.full((AGENTS,), 1 / AGENTS)


def value(critic, state, joint):
    """All critics' values of one joint action (agent, D)."""
    return critic(state[None], joint.flatten()[None])[:, 0]


@pytest.mark.parametrize("temperature", [0.0, 2.0, -2.0])
def test_discrete_penalty_by_loops(temperature):
    made, source = learner(cfcql, sequence=2, share_temperature=temperature, conservative_weight=0.7)
    torch.nn.init.normal_(made.network.agent.last[-1].weight)
    batch = batch_of(source)
    values, taken, total, state = penalty_inputs(made, batch)
    found = made.penalty(values, taken, total, state, batch, torch.Generator()).detach()
    if temperature:
        data = made.networks["behaviour"](batch).detach()
    for b in range(len(found)):
        for t in range(2):
            exceeds, distance = [], []
            for agent in range(AGENTS):
                legal = batch["available_actions"][b, t, agent].nonzero()[:, 0]
                counterfactual = []
                for action in legal:
                    joint = taken[b, t].clone()
                    joint[agent] = values[b, t, agent, action]
                    counterfactual.append(made.network.mixer(joint[None], state[b, t][None])[0].detach())
                counterfactual = torch.stack(counterfactual)
                exceeds.append(counterfactual.exp().sum().log() - total[b, t])
                if temperature:
                    ours, theirs = softmax(counterfactual, 0), softmax(data[b, t, agent][legal], 0)
                    distance.append((ours * (ours / theirs).log()).sum())
            share = shares(temperature, distance)
            expected = 0.7 * sum(s * e for s, e in zip(share, exceeds, strict=True))
            assert torch.allclose(found[b, t], expected, atol=1e-4)


def test_the_penalty_lowers_what_was_not_done_and_not_what_was():
    made, source = learner(cfcql)
    batch = batch_of(source)
    values, _, _, state = penalty_inputs(made, batch)
    values.requires_grad_()
    taken = values.gather(-1, batch["actions"][..., None])[..., 0]
    total = made.network.mixer(taken, state)
    made.penalty(values, taken, total, state, batch, torch.Generator()).sum().backward()
    done = torch.zeros_like(values, dtype=torch.bool).scatter_(-1, batch["actions"][..., None], True)
    several = (batch["available_actions"].sum(-1, keepdim=True) > 1).expand_as(values)
    assert (values.grad[~done & batch["available_actions"]] > 0).all()
    assert (values.grad[~batch["available_actions"]] == 0).all()
    assert (values.grad[done & several] < 0).float().mean() > 0.9


def test_one_agents_entry_is_replaced_at_a_time():
    data, other = torch.randn(2, AGENTS, 2), torch.randn(7, 2, AGENTS, 2)
    found = cfcql.replaced(data, other)
    assert found.shape == (7, 2, AGENTS, AGENTS, 2)
    for k, b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in found.shape[:-1])).tolist():
        assert torch.equal(found[k, b, i, j], other[k, b, i] if i == j else data[b, j])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_continuous_losses_by_loops(temperature):
    made, source = learner(
        cfcql, discrete=False, share_temperature=temperature, conservative_batch=4, conservative_samples=6,
        sizes=(ACTIONS, ACTIONS, 2),
    )  # fmt: skip
    batch = batch_of(source)
    batch["actions"][:, :, 2, 2:] = 0.0
    state, critic, actor = made.states(batch), made.networks["critic"], made.networks["actor"]
    td, penalty = made.critic_losses(state, batch, torch.Generator().manual_seed(3))
    samples, density = uniform_actions(batch["actions"][:4], 6, torch.Generator().manual_seed(3), made.real)
    done, slow = batch["actions"], made.targets["critic"].model
    acts = torch.tanh(actor(batch["observations"])[0]) * made.real
    errors, penalties, improvements = [], [], []
    for b in range(16):
        following = value(slow, state[b, 1], acts[b, 1]).min()  # slow networks are still copies
        reward = made.scale(batch["rewards"][b, 0]).mean()
        aim = reward + (0.0 if batch["terminated"][b, 0] else 0.99) * following
        values = value(critic, state[b, 0], done[b, 0])
        errors.append((values - aim).square().sum())
        exceeds, distance = [], []
        for agent in range(AGENTS):
            joint = done[b, 0].clone()
            joint[agent] = acts[b, 0, agent]
            size = acts[b, 0, agent].square().mean()
            improvements.append(1e-3 * size - value(critic, state[b, 0], joint)[0])
            if b >= 4:
                continue
            if temperature:
                behaviour = made.networks["behaviour"]
                output = behaviour(batch)[b, 0]
                distance.append(-behaviour.head.log_prob(output[None], acts[b, 0][None])[0, agent])
            candidates = []
            for k in range(6):
                joint = done[b, 0].clone()
                joint[agent] = samples[k, b, 0, agent]
                candidates.append(value(critic, state[b, 0], joint) - density[k, b, 0, agent])
            exceeds.append(torch.stack(candidates).exp().mean(0).log() - values)
        if b < 4:
            penalties.append((shares(temperature, distance)[:, None] * torch.stack(exceeds)).sum())
    assert torch.allclose(td, torch.stack(errors).mean(), rtol=1e-4)
    assert torch.allclose(penalty, torch.stack(penalties).mean(), rtol=1e-4, atol=1e-4)
    assert torch.allclose(made.actor_loss(state[:, :-1], batch), torch.stack(improvements).mean(), rtol=1e-4, atol=1e-5)


def test_the_cloned_policy_approaches_the_data():
    made, source = learner(cfcql, share_temperature=1.0, learning_rate=1e-2, batch_size=33)
    batch, generator = batch_of(source), torch.Generator().manual_seed(0)
    before = made.networks["behaviour"].loss(batch).detach()
    for _ in range(60):
        made.update(batch, generator)
    assert made.networks["behaviour"].loss(batch) < 0.8 * before


@pytest.mark.parametrize("terminated", [True, False])
def test_truncation_bootstraps_and_termination_does_not(terminated):
    from dataclasses import replace

    continuous = replace(one_step(terminated), actions=torch.zeros(1, AGENTS, ACTIONS))
    made = cfcql.make(cfcql.Config(width=8, batch_size=2), spec(False, state=False), CPU, 0)
    batch = batch_of(made.batches(continuous))
    state = made.states(batch)
    acts = torch.tanh(made.networks["actor"](batch["observations"])[0])[:, 1]
    following = made.networks["critic"](state[:, 1], acts.flatten(-2)).amin(0)
    reward = made.scale(torch.ones(()))
    expected = reward if terminated else reward + 0.99 * following
    assert torch.allclose(made.returns(state, batch)[:, 0], expected.expand(2))
