"""QMIX and QMIX+CQL: targets and penalty by loops and by brute force over all joint actions."""

import itertools

import pytest
import torch

from baselines import qmix, qmix_cql
from madiff.data.store import EpisodeStore
from tests.baselines.toys import ACTIONS, AGENTS, CPU, batch_of, forward_returns, learner, spec


@pytest.mark.parametrize("options", [
    {"sequence": 1}, {"sequence": 4, "td_lambda": 0.0}, {"sequence": 4, "td_lambda": 0.6, "recurrent": True},
])  # fmt: skip
def test_returns_by_loops(options):
    made, source = learner(qmix, **options)
    torch.nn.init.normal_(made.slow.agent.last[-1].weight)  # so that slow and trained networks disagree
    batch = batch_of(source)
    values, state = made.network(batch["observations"]).detach(), made.states(batch)
    slow = made.slow(batch["observations"])
    found = made.returns(values, state, batch)
    length = options["sequence"]
    for b in range(len(found)):
        following = []
        for t in range(length):
            chosen = []
            for agent in range(AGENTS):
                legal = batch["next_available_actions"][b, t, agent].nonzero()[:, 0].tolist()
                best = max(legal, key=lambda a: float(values[b, t + 1, agent, a]))  # noqa: B023
                chosen.append(slow[b, t + 1, agent, best])
            following.append(made.slow.mixer(torch.stack(chosen)[None], state[b, t + 1][None])[0])
        rewards = made.scale(batch["rewards"][b]).mean(-1)
        valid = batch["transition_valid"][b]
        expected = forward_returns(
            rewards, batch["terminated"][b], following, valid, 0.99, made.config.td_lambda
        )  # fmt: skip
        assert torch.allclose(found[b][valid], expected, atol=1e-5)


def test_loss_is_the_mean_squared_error_of_real_steps():
    made, source = learner(qmix, sequence=4)
    batch = batch_of(source)
    values, state = made.network(batch["observations"]), made.states(batch)
    aim, errors = made.returns(values, state, batch), []
    for b, t in batch["transition_valid"].nonzero().tolist():
        taken = [values[b, t, agent, batch["actions"][b, t, agent]] for agent in range(AGENTS)]
        total = made.network.mixer(torch.stack(taken)[None], state[b, t][None])[0]
        errors.append((total - aim[b, t]).square())
    assert not batch["transition_valid"].all()
    expected = torch.stack(errors).mean().detach()
    assert torch.allclose(made.update(batch, torch.Generator())["loss"], expected, rtol=1e-5)


def one_step(terminated):
    """Two agents, one step, reward 1."""
    return EpisodeStore.from_arrays([{
        "observations": torch.ones(2, AGENTS, 4), "actions": torch.zeros(1, AGENTS, dtype=torch.int64),
        "rewards": torch.ones(1, AGENTS), "terminated": terminated, "truncated": not terminated,
    }], action_size=ACTIONS)  # fmt: skip


@pytest.mark.parametrize("terminated", [True, False])
def test_truncation_bootstraps_and_termination_does_not(terminated):
    made = qmix.make(qmix.Config(width=8, batch_size=2, sequence=1), spec(state=False), CPU, 0)
    batch = batch_of(made.batches(one_step(terminated)))
    values, state = made.network(batch["observations"]), made.states(batch)
    reward = made.scale(torch.ones(()))
    best = values[:, 1].amax(-1)  # no masks, and the slow network is still a copy
    following = made.slow.mixer(best, state[:, 1])
    expected = reward if terminated else reward + 0.99 * following
    assert torch.allclose(made.returns(values, state, batch)[:, 0], expected.expand(2))


def penalty_inputs(made, batch):
    values, state = made.network(batch["observations"])[:, :-1].detach(), made.states(batch)[:, :-1]
    taken = values.gather(-1, batch["actions"][..., None])[..., 0]
    return values, taken, made.network.mixer(taken, state).detach(), state


def test_conservative_penalty_against_all_joint_actions():
    """The importance-weighted estimate converges to the logarithm of the sum over every legal joint action."""
    made, source = learner(qmix_cql, samples=4000)
    torch.nn.init.normal_(made.network.agent.last[-1].weight)
    batch = {name: value[:4] for name, value in batch_of(source).items()}
    values, taken, total, state = penalty_inputs(made, batch)
    found = made.penalty(values, taken, total, state, batch, torch.Generator().manual_seed(0)).detach()
    for b in range(4):
        legal = [batch["available_actions"][b, 0, agent].nonzero()[:, 0].tolist() for agent in range(AGENTS)]
        totals = [
            made.network.mixer(values[b, 0, range(AGENTS), list(joint)][None], state[b, 0][None])[0]
            for joint in itertools.product(*legal)
        ]
        expected = torch.stack(totals).detach().logsumexp(0) - total[b, 0]
        assert abs(float(found[b, 0] - expected)) < 0.05


def test_sampled_joint_actions_are_legal_and_as_frequent_as_said():
    made, source = learner(qmix_cql, samples=20_000)
    batch = {name: value[:1] for name, value in batch_of(source).items()}
    values = torch.randn(1, 1, AGENTS, ACTIONS)
    actions, log_density = made.proposals(values, batch["available_actions"], torch.Generator().manual_seed(0))
    assert actions.shape == (1, 1, AGENTS, 40_000)
    assert batch["available_actions"].gather(-1, actions).all()
    for kind, columns in (("uniform", slice(0, 20_000)), ("softmax", slice(20_000, None))):
        some, density = actions[0, 0, :, columns].T, log_density[0, 0, columns]
        for joint in some.unique(dim=0)[:10]:
            rows = (some == joint).all(-1)
            assert abs(float(rows.float().mean() - density[rows][0].exp())) < 0.015, kind


def test_without_weight_conservative_qmix_is_qmix():
    first, source = learner(qmix, sequence=1)
    second, _ = learner(qmix_cql, conservative_weight=0.0)
    for step in range(3):
        batch = batch_of(source, step)
        first.update(batch, torch.Generator().manual_seed(step))
        second.update(batch, torch.Generator().manual_seed(step))
    assert all(torch.equal(value, second.weights()[name]) for name, value in first.weights().items())
