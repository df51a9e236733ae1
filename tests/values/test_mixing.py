"""Mixers: monotonic by gradient, the sum of the parts by loops, and the best joint action by brute force."""

import itertools

import pytest
import torch

from madiff.values.mixing import LinearMixer, MonotonicMixer

AGENTS, STATE = 3, 5
MIXERS = {
    "monotonic": lambda: MonotonicMixer(AGENTS, STATE, width=8, hyper_width=16),
    "linear": lambda: LinearMixer(AGENTS, STATE, hyper_width=16),
    "normalised": lambda: LinearMixer(AGENTS, STATE, hyper_width=16, normalised=True),
}


def make(name, seed=0):
    """A mixer with weights as wild as training could make them."""
    torch.manual_seed(seed)
    mixer = MIXERS[name]()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter)
    return mixer


@pytest.mark.parametrize("name", MIXERS)
def test_the_teams_value_never_falls_when_an_agents_rises(name):
    mixer = make(name)
    values, state = torch.randn(400, AGENTS, requires_grad=True), torch.randn(400, STATE)
    (gradient,) = torch.autograd.grad(mixer(values, state).sum(), values)
    assert gradient.min() >= 0 and (gradient > 0).float().mean() > 0.9


def test_the_monotonic_mixer_is_not_linear():
    mixer, state = make("monotonic"), torch.randn(1, STATE)
    rise = [float(mixer(torch.tensor([[x, 0.0, 0.0]]), state).detach()) for x in (-1.0, 0.0, 1.0)]
    assert abs((rise[2] - rise[1]) - (rise[1] - rise[0])) > 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MIXERS)
def test_each_agents_best_action_is_part_of_the_teams_best(name, seed):
    mixer, actions = make(name, seed), 4
    values, state = torch.randn(20, AGENTS, actions), torch.randn(20, STATE)
    joint = list(itertools.product(range(actions), repeat=AGENTS))
    for row in range(20):
        totals = [
            float(mixer(values[row, range(AGENTS), list(choice)][None], state[row : row + 1]).detach())
            for choice in joint
        ]
        own = tuple(values[row].argmax(-1).tolist())
        assert totals[joint.index(own)] == pytest.approx(max(totals), rel=1e-5)


def test_monotonic_mixer_against_loops():
    mixer = make("monotonic")
    values, state = torch.randn(2, 4, AGENTS), torch.randn(2, 4, STATE)
    mixed = mixer(values, state)
    assert mixed.shape == (2, 4)
    for b, t in itertools.product(range(2), range(4)):
        s = state[b, t]
        first = mixer.first_weight(s).abs().reshape(AGENTS, 8)
        total = mixer.last_bias(s)[0]
        for unit in range(8):
            x = mixer.first_bias(s)[unit] + sum(values[b, t, i] * first[i, unit] for i in range(AGENTS))
            total = total + mixer.last_weight(s)[unit].abs() * torch.where(x > 0, x, x.exp() - 1)
        assert torch.allclose(mixed[b, t], total, rtol=1e-4)


def test_many_joint_values_of_a_state_are_mixed_as_one_by_one():
    mixer = make("monotonic")
    values, state = torch.randn(2, 4, 7, AGENTS), torch.randn(2, 4, STATE)
    each = torch.stack([mixer(values[:, :, k], state) for k in range(7)], -1)
    assert torch.allclose(mixer.many(values, state), each, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "normalised"])
def test_linear_mixer_is_a_weighted_sum(name):
    mixer = make(name)
    values, state = torch.randn(6, AGENTS), torch.randn(6, STATE)
    weight, bias = mixer.weights(state)
    for row in range(6):
        total = bias[row] + sum(weight[row, i] * values[row, i] for i in range(AGENTS))
        assert torch.allclose(mixer(values, state)[row], total, rtol=1e-5, atol=1e-5)
    assert weight.min() >= 0
    assert torch.allclose(weight.sum(-1), torch.ones(6)) == (name == "normalised")
