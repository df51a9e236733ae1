"""MADT: sees the past and only the past, as far as its context reaches, and asks for what is left of the return."""

import pytest
import torch

from baselines import madt
from tests.baselines.toys import ACTIONS, AGENTS, OBSERVATION, batch_of, learner


def network(context=4, returns=True):
    torch.manual_seed(0)
    return madt.MADTNetwork(6, ACTIONS, 16, layers=2, heads=2, context=context, returns=returns)


@pytest.mark.parametrize("returns", [True, False])
def test_the_future_and_other_agents_are_not_seen(returns):
    net, x = network(returns=returns), torch.randn(2, 4, AGENTS, 6 + returns)
    changed = x.clone()
    changed[:, 2:, 1] += 1.0
    difference = (net(x)[0] - net(changed)[0]).abs().amax((0, -1))
    assert (difference[:2] == 0).all() and (difference[:, [0, 2]] == 0).all()
    assert (difference[2:, 1] > 0).all()


def test_what_is_to_come_and_what_was_seen_both_matter():
    net, x = network(), torch.randn(2, 4, AGENTS, 7)
    for entry in (0, 6):  # an observed value; the return
        changed = x.clone()
        changed[:, 0, :, entry] += 1.0
        assert ((net(x)[0] - net(changed)[0]).abs().amax((0, 2, 3)) > 0).all()


def test_step_by_step_equals_the_whole_sequence_and_forgets_beyond_the_context():
    net, x = network(context=3), torch.randn(2, 6, AGENTS, 7)
    past, steps = None, []
    for t in range(6):
        output, past = net(x[:, t : t + 1], past)
        steps.append(output[:, 0])
        assert past.shape[1] == min(t + 1, 3)
    assert torch.allclose(torch.stack(steps[:3], 1), net(x[:, :3])[0], atol=1e-5)
    assert torch.allclose(steps[5], net(x[:, 3:])[0][:, -1], atol=1e-5)


def test_attention_against_loops():
    block, x = madt.CausalBlock(8, heads=2), torch.randn(1, 5, 8)
    q, k, v = block.qkv(block.before_attention(x))[0].chunk(3, -1)
    attended = torch.zeros(5, 8)
    for head in (slice(0, 4), slice(4, 8)):
        for i in range(5):
            scores = torch.stack([q[i, head] @ k[j, head] / 2.0 for j in range(i + 1)])
            attended[i, head] = (torch.softmax(scores, 0)[:, None] * v[: i + 1, head]).sum(0)
    y = x + block.out(attended)
    assert torch.allclose(block(x), y + block.mlp(block.before_mlp(y)), atol=1e-5)


def test_training_sees_the_return_to_go_of_every_step():
    made, source = learner(madt, context=4)
    batch = batch_of(source)
    seen = []
    made.network.forward = lambda x, past=None: seen.append(x) or madt.MADTNetwork.forward(made.network, x, past)
    made.update(batch, torch.Generator())
    data = source.returns  # of every transition, undiscounted
    spread = made.scale.high - made.scale.low
    first = source.first[torch.tensor([int((source.episode == e).nonzero()[0]) for e in batch["episode"]])]
    for b in range(len(seen[0])):
        for t in range(int(batch["transition_valid"][b].sum())):
            expected = data[first[b] + batch["time"][b] + t] / spread
            assert torch.allclose(seen[0][b, t, :, -1], expected, atol=1e-5)


def test_acting_asks_for_what_is_left():
    made, _ = learner(madt, context=2, target_return=0.5)
    policy = made.policy()
    policy.reset(seed=0, n=2)
    returns = torch.tensor([float(made.scale.low), float(made.scale.high)])
    for paid in (0.0, 0.5):
        asked = policy.inputs(torch.rand(2, AGENTS, OBSERVATION))[..., -1]
        expected = (returns.mean() - paid) / (returns[1] - returns[0])
        assert torch.allclose(asked, expected.expand(2, AGENTS), atol=1e-5)
        policy.receive(torch.full((2, AGENTS), 0.5))


def test_imitates():
    made, source = learner(madt, context=3, learning_rate=3e-3, batch_size=48, ema_start=0)
    batch, generator = batch_of(source), torch.Generator()
    losses = [float(made.update(batch, generator)["loss"]) for _ in range(100)]
    assert losses[-1] < 0.5 * losses[0]


def test_width_must_fit_the_heads():
    with pytest.raises(ValueError, match="width 10 does not fit 4 heads"):
        madt.MADTNetwork(6, ACTIONS, 10, 1, 4, 2, False)
