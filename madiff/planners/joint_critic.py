"""A critic of joint actions, learnt beside the planner from the same windows, that ranks its candidate plans.

Implicit Q-learning (IQL, arXiv 2110.06169): no joint action outside the data is ever evaluated while it learns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec
from madiff.values import ActorCritic, QEnsemble, RewardScale, Target, expectile_loss, masked_mean, td_target

LEARNING_RATE = 1e-3
CLIP = 10.0
EXTRAS = ("rewards", "terminated")


class JointCritic(ActorCritic):
    """Twin Q(o, a) and V(o) of the team's discounted return, mean over agents and in units of the reward scale.

    o: all agents' encoded observations side by side; a: the joint action, one-hot or as a vector.
    """

    def __init__(
        self, spec: EnvironmentSpec, features: int, width: int, discount: float, expectile: float, device: torch.device
    ) -> None:
        self.spec, self.discount, self.expectile = spec, discount, expectile
        self.rewards = RewardScale().to(device)
        inputs = spec.agents * (features - spec.agents)  # identities say nothing of the whole team
        self.q = QEnsemble(inputs + spec.agents * spec.action_size, 1, width, critics=2).to(device)
        self.v = QEnsemble(inputs, 1, width, critics=1).to(device)
        self.slow_q, self.slow_v = Target(self.q), Target(self.v)
        self.acting = nn.ModuleList([self.slow_q.model, self.slow_v.model])
        super().__init__(
            {"q": self.q, "v": self.v}, {"q": LEARNING_RATE, "v": LEARNING_RATE}, {"rewards": self.rewards},
            {"q": self.slow_q, "v": self.slow_v},
        )  # fmt: skip

    def fit(self, store: EpisodeStore) -> None:
        self.rewards.fit(store, self.discount)

    def update(self, batch: dict[str, Tensor], now: int) -> dict[str, Tensor]:
        """One step on all real transitions from index `now` of the windows on (arXiv 2110.06169, eq. 5 and 6)."""
        x, valid = batch["observations"][:, now:], batch["transition_valid"][:, now:]
        o, pair = self._joint(x), self._joint(x[:, :-1], batch["actions"][:, now:])
        with torch.no_grad():
            taken = self.slow_q.model(pair).amin(0)
            rewards = self.rewards(batch["rewards"][:, now:]).mean(-1, keepdim=True)
            target = td_target(rewards, batch["terminated"][:, now:], self.v(o[:, 1:])[0], self.discount)
        q_loss = masked_mean((self.q(pair) - target).square()[..., 0], valid)
        self.gradient_step("q", q_loss, CLIP)
        v_loss = masked_mean(expectile_loss(taken - self.v(o[:, :-1])[0], self.expectile)[..., 0], valid)
        self.gradient_step("v", v_loss, CLIP)
        self.finish_update()
        return {"q_loss": q_loss, "v_loss": v_loss}

    def advantage(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q(o, a) - V(o) (...): observations (..., agent, F) encoded, actions (..., agent) or (..., agent, D)."""
        q = self.slow_q.model(self._joint(observations, actions)).amin(0)
        return (q - self.slow_v.model(self._joint(observations))[0])[..., 0]

    def _joint(self, observations: Tensor, actions: Tensor | None = None) -> Tensor:
        """Everything of the team side by side: (..., agent, F) and (..., agent[, D]) -> (..., inputs)."""
        joint = observations[..., self.spec.agents :].flatten(-2)
        if actions is None:
            return joint
        if self.spec.discrete:
            actions = F.one_hot(actions, self.spec.action_size).to(joint.dtype)
        return torch.cat([joint, actions.flatten(-2)], dim=-1)


def make_joint_critic(config: Any, spec: EnvironmentSpec, device: torch.device, seed: int) -> JointCritic | None:
    """The critic the options ask for, with weights drawn from the seed alone; None where nothing is to be ranked."""
    if not config.critic and config.candidates == 1:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = spec.agents + spec.observation_size
        return JointCritic(spec, features, config.critic_width, config.critic_discount, config.expectile, device)
