"""Behaviour cloning: memory, legality, state."""

import pytest
import torch

from baselines import bc
from madiff.interfaces import EnvironmentSpec, UserError
from tests.planners.test_madiff import store

CPU = torch.device("cpu")


def learner(discrete=True, **options) -> bc.BC:
    spec = EnvironmentSpec("toy", "toy", 3, 4, 5, discrete, 0, 12)
    return bc.make(bc.Config(**{"width": 16, "batch_size": 16, "sequence": 4, "ema_start": 0, **options}), spec, CPU, 0)


def test_memory_step_by_step_equals_the_whole_sequence():
    method = learner(recurrent=True)
    x = torch.randn(2, 6, 3, method.encoder.features)
    whole, _ = method.network(x)
    hidden, steps = None, []
    for t in range(6):
        output, hidden = method.network(x[:, t : t + 1], hidden)
        steps.append(output)
    assert torch.allclose(whole, torch.cat(steps, 1), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"recurrent": True}, {"likelihood": "gaussian"}])
@pytest.mark.parametrize("discrete", [False, True])
def test_learns_and_acts_legally(options, discrete):
    method = learner(discrete, **options, learning_rate=1e-2)
    source, generator = method.batches(store(discrete=discrete)), torch.Generator().manual_seed(0)
    losses = [float(method.update(source.sample(generator), generator)["loss"]) for _ in range(200)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    policy = method.policy()
    policy.reset(seed=0, n=9)
    masks = (torch.rand(9, 3, 5) < 0.4).index_fill(-1, torch.tensor([1]), True) if discrete else None
    actions = policy.act(torch.rand(9, 3, 4), masks)
    if discrete:
        assert masks.gather(-1, actions[..., None]).all()
    else:
        assert actions.shape == (9, 3, 5) and actions.abs().max() <= 1


def test_sampling_is_fixed_by_the_seed_and_differs_from_greedy():
    policy = learner(acting="sample").policy()
    observations = torch.rand(50, 3, 4)
    draws = []
    for seed in (0, 0, 1):
        policy.reset(seed=seed, n=50)
        draws.append(policy.act(observations, None))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_gaussian_loss_is_the_negative_log_likelihood_of_real_transitions():
    method = learner(discrete=False, likelihood="gaussian", sequence=4, recurrent=True)
    source, generator = method.batches(store(discrete=False)), torch.Generator().manual_seed(0)
    batch = source.sample(generator)
    with torch.no_grad():
        output, _ = method.network(batch["observations"][:, :-1])
    mean, log_std = method.head.split(output)
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(batch["actions"]).sum(-1)
    real = batch["transition_valid"]
    assert not real.all()
    expected = -density[real].mean()
    assert torch.allclose(method.update(batch, generator)["loss"], expected, atol=1e-5)


def test_sampling_with_gaussian_likelihood_has_the_learnt_spread():
    policy = learner(discrete=False, likelihood="gaussian", acting="sample").policy()
    policy.reset(seed=0, n=4000)
    observations = torch.zeros(4000, 3, 4)
    actions = policy.act(observations, None)
    mean, log_std = policy.head.split(policy.network(policy.encoder.encode(observations)[:, None])[0][:, 0])
    inside = (actions.abs() < 1).float()  # the rest is clipped, as much of a normal distribution lies beyond
    normal = torch.distributions.Normal(mean[0], log_std[0].exp())
    expected = normal.cdf(torch.ones(3, 5)) - normal.cdf(-torch.ones(3, 5))
    assert torch.allclose(inside.mean(0), expected, atol=0.03)


def test_unknown_acting_is_a_users_error():
    with pytest.raises(UserError, match="algo.acting"):
        learner(acting="argmax").policy()
