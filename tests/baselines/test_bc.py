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


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_learns_and_acts_legally(recurrent, discrete):
    method = learner(discrete, recurrent=recurrent, learning_rate=1e-2)
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


def test_unknown_acting_is_a_users_error():
    with pytest.raises(UserError, match="algo.acting"):
        learner(acting="argmax")
