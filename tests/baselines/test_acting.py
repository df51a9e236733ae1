"""Acting: the three heads against torch's distributions, shared noise, memory."""

import pytest
import torch
from torch.distributions import Normal

from baselines.acting import AgentNetwork, Categorical, Deterministic, Gaussian, NetworkPolicy
from madiff.data.encoding import ObservationEncoder
from madiff.interfaces import UserError


class Constant(torch.nn.Module):
    """A network that says the same of every agent."""

    def __init__(self, output):
        super().__init__()
        self.output = torch.nn.Parameter(torch.as_tensor(output))

    def forward(self, x, hidden=None):
        return self.output.expand(*x.shape[:-1], -1), hidden


def policy(output, head, agents=2, **options):
    encoder = ObservationEncoder(agents, 1, "none")
    return NetworkPolicy(encoder, Constant(output), head, **options)


def draws(chosen, n=20_000, agents=2, masks=None):
    chosen.reset(seed=0, n=n)
    return chosen.act(torch.zeros(n, agents, 1), masks)


def test_categorical_samples_have_the_softmax_frequencies_of_legal_actions():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5])
    masks = torch.tensor([True, True, False, True]).expand(20_000, 2, 4)
    actions = draws(policy(logits, Categorical(4), acting="sample"), masks=masks)
    weights = logits.exp() * torch.tensor([1.0, 1.0, 0.0, 1.0])
    for agent in range(2):
        frequencies = torch.bincount(actions[:, agent], minlength=4) / 20_000
        assert torch.allclose(frequencies, weights / weights.sum(), atol=0.015)
    assert (draws(policy(logits, Categorical(4)), masks=masks) == 3).all()


def test_categorical_log_prob_is_normalised_over_legal_actions():
    logits, available = torch.randn(5, 3, 4), torch.tensor([True, False, True, True]).expand(5, 3, 4)
    total = sum(
        Categorical(4).log_prob(logits, torch.full((5, 3), action), available).exp() for action in (0, 2, 3)
    )  # fmt: skip
    assert torch.allclose(total, torch.ones(5, 3))


def test_gaussian_log_prob_counts_real_dimensions_only():
    head = Gaussian(3, sizes=(3, 1))
    output, actions = torch.randn(7, 2, 6), torch.rand(7, 2, 3) * 2 - 1
    mean, log_std = head.split(output)
    each = Normal(mean, log_std.exp()).log_prob(actions)
    assert torch.allclose(head.log_prob(output, actions)[:, 0], each[:, 0].sum(-1), atol=1e-5)
    assert torch.allclose(head.log_prob(output, actions)[:, 1], each[:, 1, 0], atol=1e-5)


def test_gaussian_actions_are_zero_where_an_agent_has_no_dimension():
    head = Gaussian(2, sizes=(2, 1))
    for acting in ("greedy", "sample"):
        actions = draws(policy([0.5, 0.5, 0.0, 0.0], head, acting=acting), n=10)
        assert (actions[:, 1, 1] == 0).all() and (actions[:, 0] != 0).all() and (actions[:, 1, 0] != 0).all()


def test_gaussian_samples_are_normal_and_clipped():
    head = Gaussian(1)
    actions = draws(policy([0.5, 2.0], head, acting="sample"))[..., 0]
    mean, log_std = head.split(torch.tensor([0.5, 2.0]))
    normal = Normal(mean, log_std.exp())
    assert actions.abs().max() == 1
    for bound in (-0.5, 0.0, 0.5, 0.9):
        assert abs(float((actions < bound).float().mean()) - float(normal.cdf(torch.tensor(bound)))) < 0.01


@pytest.mark.parametrize("output, head", [([0.0, 0.1, 0.2], Categorical(3)), ([0.1, 0.5], Gaussian(1))])
def test_common_noise_makes_equal_agents_act_equally_and_keeps_the_distribution(output, head):
    shared = draws(policy(output, head, acting="sample", common_noise=True))
    apart = draws(policy(output, head, acting="sample"))
    assert torch.equal(shared[:, 0], shared[:, 1]) and not torch.equal(apart[:, 0], apart[:, 1])
    assert len(shared[:, 0].unique()) > 2
    assert torch.allclose(shared[:, 0].float().mean(0), apart[:, 0].float().mean(0), atol=0.03)


def test_common_noise_respects_each_agents_mask():
    masks = torch.tensor([[True, True, False], [False, True, True]]).expand(20_000, 2, 3)
    actions = draws(policy([0.0, 0.0, 0.0], Categorical(3), acting="sample", common_noise=True), masks=masks)
    assert masks.gather(-1, actions[..., None]).all()
    assert len(actions.unique(dim=0)) >= 3


def test_a_deterministic_policy_samples_its_action():
    head = Deterministic(2)
    assert torch.equal(draws(policy([0.3, -2.0], head, acting="sample"))[0, 0], torch.tensor([0.3, -2.0]).tanh())


def test_memory_lasts_until_reset():
    network = AgentNetwork(3, 4, width=8, recurrent=True)
    recurrent = NetworkPolicy(ObservationEncoder(2, 1, "none"), network, Gaussian(2))
    observations = torch.rand(3, 5, 2, 1)  # three steps of five copies
    first = []
    for _ in range(2):
        recurrent.reset(seed=0, n=5)
        first.append([recurrent.act(step, None) for step in observations])
    assert all(torch.equal(a, b) for a, b in zip(*first, strict=True))
    recurrent.reset(seed=0, n=5)
    assert not torch.equal(recurrent.act(observations[2], None), first[0][2])


def test_unknown_acting_is_a_users_error():
    with pytest.raises(UserError, match="algo.acting: unknown value 'argmax'"):
        policy([0.0], Categorical(1), acting="argmax")
