"""The base of actor-critics: who gets gradients, and a state that continues exactly."""

import copy
import io

import torch
from torch import nn

from madiff.data.normalizers import make_normalizer
from madiff.diffusion.ema import EMA
from madiff.values import ActorCritic, Target


class Toy(ActorCritic):
    """A critic that fits x + a and an actor that climbs it."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        actor, critic = nn.Linear(2, 2), nn.Linear(4, 1)
        super().__init__(
            {"actor": actor, "critic": critic}, {"actor": 1e-2, "critic": 1e-2},
            fixed={"normalizer": make_normalizer("gaussian", 2)}, targets={"critic": Target(critic, 0.1)},
            averages={"actor": EMA(actor, 0.9, every=1, start=0)},
        )  # fmt: skip

    def update(self, x: torch.Tensor) -> None:
        actor, critic = self.networks["actor"], self.networks["critic"]
        error = critic(torch.cat([x, x], -1)) - x.sum(-1, keepdim=True)
        self.gradient_step("critic", error.square().mean(), 1.0)
        self.gradient_step("actor", -critic(torch.cat([x, actor(x)], -1)).mean(), 1.0)
        self.finish_update()


def test_an_actor_trained_through_the_critic_leaves_it_alone():
    learner, x = Toy(0), torch.randn(8, 2)
    before = copy.deepcopy(learner.networks["critic"].state_dict())
    loss = -learner.networks["critic"](torch.cat([x, learner.networks["actor"](x)], -1)).mean()
    gradients = torch.autograd.grad(loss, list(learner.networks["actor"].parameters()), retain_graph=True)
    norm = learner.gradient_step("actor", loss, 1e-3)
    assert float(norm) == float(torch.cat([g.flatten() for g in gradients]).norm()) > 1e-3
    clipped = torch.cat([p.grad.flatten() for p in learner.networks["actor"].parameters()]).norm()
    assert abs(float(clipped) - 1e-3) < 1e-6
    assert all(p.grad is None for p in learner.networks["critic"].parameters())
    assert all(torch.equal(before[key], value) for key, value in learner.networks["critic"].state_dict().items())


def test_a_learner_that_took_up_a_saved_state_continues_bit_for_bit():
    batches = torch.randn(20, 8, 2)
    first, second = Toy(0), Toy(1)
    first.fixed["normalizer"].fit(batches[0])
    for x in batches[:10]:
        first.update(x)
    saved = {name: value.clone() for name, value in first.weights().items()}
    buffer = io.BytesIO()
    torch.save(first.training_state(), buffer)
    buffer.seek(0)
    second.load_weights(saved)
    second.load_training_state(torch.load(buffer, weights_only=True))
    for x in batches[10:]:
        first.update(x)
        second.update(x)
    mine, theirs = first.weights(), second.weights()
    groups = {name.rsplit(".", 1)[0] for name in mine}
    assert groups == {"trained.actor", "trained.critic", "target.critic", "averaged.actor", "fixed.normalizer"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any(not torch.equal(mine[name], saved[name]) for name in mine)
