"""Ensembles against plain networks, one member and one action at a time."""

import torch
from torch import nn

from madiff.values import ActionCritic, QEnsemble, chosen


def member(ensemble: QEnsemble, index: int) -> nn.Sequential:
    """One critic of the ensemble as a stack of linear layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[index].data.T, bias[index, 0].data
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_every_member_is_a_network_of_its_own():
    ensemble = QEnsemble(5, 4, width=8, layers=2, critics=3)
    x = torch.randn(2, 6, 5)
    expected = torch.stack([member(ensemble, index)(x) for index in range(3)])
    assert torch.allclose(ensemble(x), expected, atol=1e-6)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    assert torch.allclose(ensemble(x, members=1), expected[:1], atol=1e-6)


def test_starts_as_linear_layers_do():
    torch.manual_seed(0)
    ensemble, linear = QEnsemble(64, 3, width=128, critics=20), nn.Linear(128, 128)
    for weight, fan_in in zip(ensemble.weights, (64, 128, 128), strict=True):
        assert weight.abs().max() <= fan_in**-0.5
    assert abs(float((ensemble.weights[1].std() / linear.weight.std()).detach()) - 1) < 0.02


def test_many_actions_equal_one_at_a_time():
    critic = ActionCritic(5, 2, width=8, layers=3, critics=2)
    observations, actions = torch.randn(4, 3, 5), torch.rand(7, 4, 3, 2)
    values = critic.many(observations, actions)
    assert values.shape == (2, 7, 4, 3)
    for k in range(7):
        assert torch.allclose(values[:, k], critic(observations, actions[k]), atol=1e-6)
    assert torch.allclose(critic.many(observations, actions, members=1), values[:1], atol=1e-6)
    assert torch.allclose(critic(observations, actions[0], members=1), values[:1, 0], atol=1e-6)
    for index in range(2):
        joined = torch.cat([observations, actions[0]], -1)
        assert torch.allclose(values[index, 0], member(critic, index)(joined)[..., 0], atol=1e-6)


def test_chosen_against_loops():
    values, actions = torch.randn(2, 3, 4, 5), torch.randint(5, (3, 4))
    picked = chosen(values, actions)
    for c in range(2):
        for b in range(3):
            for a in range(4):
                assert picked[c, b, a] == values[c, b, a, actions[b, a]]
