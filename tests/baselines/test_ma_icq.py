"""MA-ICQ: weights, returns and both losses by loops."""

import math
from dataclasses import replace

import pytest
import torch

from baselines import ma_icq
from tests.baselines.test_qmix import one_step
from tests.baselines.toys import ACTIONS, AGENTS, CPU, batch_of, forward_returns, learner, spec


def own_values(critic, made, batch, b, t):
    """The agents' values of all actions at one step, from state, observation and identity."""
    observation, state = batch["observations"][b, t], made.states(batch)[b, t]
    return torch.stack([critic.agent(torch.cat([observation[i], state])[None])[0, 0] for i in range(AGENTS)])


def probabilities(made, batch):
    """The actor's probabilities at all steps that are learnt from, illegal actions by hand."""
    logits = made.networks["actor"](batch["observations"][:, :-1])[0]
    legal = torch.cat([batch["available_actions"][:, :1], batch["next_available_actions"][:, :-1]], dim=1)
    weights = logits.exp() * legal
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_losses_by_loops(decay):
    made, source = learner(ma_icq, sequence=4, td_lambda=decay, temperature=0.3, value_temperature=2.0)
    torch.nn.init.normal_(made.networks["actor"].last[-1].weight)
    torch.nn.init.normal_(made.targets["critic"].model.agent.weights[-1])
    batch, state = batch_of(source), None
    with torch.no_grad():
        pi, state = probabilities(made, batch), made.states(batch)
        critic, slow = made.networks["critic"], made.targets["critic"].model
        real = batch["transition_valid"][:, :-1]
        rows = real.nonzero().tolist()
        following = torch.zeros(real.shape)
        for b, t in rows:
            values = own_values(slow, made, batch, b, t + 1)
            if batch["transition_valid"][b, t + 1]:
                local = values[range(AGENTS), batch["actions"][b, t + 1]]
            else:
                local = (pi[b, t + 1] * values).sum(-1)
            following[b, t] = slow.mixer(local[None], state[b, t + 1][None])[0]
        normal = sum(math.exp(following[b, t] / 2.0) for b, t in rows) / len(rows)
        following = following * (following / 2.0).exp() / normal
        squared, weights, logs, advantages = [], [], [], {}
        for b, t in rows:
            steps = int(real[b].sum())
            rewards = made.scale(batch["rewards"][b]).mean(-1)
            aims = forward_returns(rewards, batch["terminated"][b], following[b], real[b], 0.99, decay)
            assert len(aims) == steps
            values, taken = own_values(critic, made, batch, b, t), batch["actions"][b, t]
            local = values[range(AGENTS), taken]
            squared.append((critic.mixer(local[None], state[b, t][None])[0] - aims[t]).square())
            advantages[b, t] = local - (pi[b, t] * values).sum(-1)
            weights.append(AGENTS * critic.mixer.weights(state[b, t][None])[0][0])
            logs.append(pi[b, t][range(AGENTS), taken].log())
        mean = sum((advantages[b, t] / 0.3).exp() for b, t in rows) / len(rows)
        cloned = [
            w * (advantages[b, t] / 0.3).exp() / mean * log
            for (b, t), w, log in zip(rows, weights, logs, strict=True)
        ]
    found = made.update(batch, torch.Generator())
    assert not real.all() and not batch["transition_valid"][:, 1:][real].all()
    assert torch.allclose(found["critic_loss"], torch.stack(squared).mean(), rtol=1e-4)
    assert torch.allclose(found["actor_loss"], -torch.stack(cloned).mean(), rtol=1e-4)


def test_weights_are_a_softmax_with_mean_one():
    values, valid = torch.randn(3, 4, 2), torch.rand(3, 4, 1) < 0.6
    found = ma_icq.balanced_softmax(values, valid)
    for agent in range(2):
        some = values[..., agent][valid[..., 0]]
        assert torch.allclose(found[..., agent][valid[..., 0]], some.exp() / some.exp().mean())
    assert (found[~valid.expand(found.shape)] == 0).all()


def test_a_better_action_is_cloned_more():
    made, source = learner(ma_icq, sequence=1, temperature=0.05, learning_rate=1e-2, batch_size=256)
    store_batch = batch_of(source)
    store_batch["rewards"] = (store_batch["actions"] == 2).float() * 5
    store_batch["terminated"] = torch.ones_like(store_batch["terminated"])
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        made.update(store_batch, generator)
    policy, masks = made.policy(), torch.ones(40, AGENTS, ACTIONS, dtype=torch.bool)
    policy.reset(seed=0, n=40)
    assert (policy.act(torch.rand(40, AGENTS, 4), masks) == 2).float().mean() > 0.9


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("terminated", [True, False])
def test_truncation_bootstraps_and_termination_does_not(terminated, discrete):
    data = one_step(terminated)
    data = data if discrete else replace(data, actions=torch.zeros(1, AGENTS, ACTIONS))
    config = ma_icq.Config(width=8, batch_size=2, sequence=1)
    made = ma_icq.make(config, spec(discrete, state=False), CPU, 0)
    batch = batch_of(made.batches(data))
    state, reward = made.states(batch)[:, :-1], made.scale(torch.ones(()))
    observations = batch["observations"][:, :-1]
    seen = torch.cat([observations, state[:, :, None].expand(-1, -1, AGENTS, -1)], -1)
    actor = made.policy_of(made.networks["actor"](observations)[0], batch)
    found = made.returns(seen, state, actor, batch)[:, 0]
    critic = made.networks["critic"]
    if discrete:
        local = (critic.agent(seen[:, 1])[0] * actor[:, 1]).sum(-1)
    else:
        local = critic.agent(seen[:, 1], actor[:, 1])[0]
    following = critic.mixer(local, state[:, 1])  # equal rows, so the weights over the batch are 1
    expected = torch.full((2,), float(reward)) if terminated else reward + 0.99 * following
    assert torch.allclose(found, expected, atol=1e-5)
