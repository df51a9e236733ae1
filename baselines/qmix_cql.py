"""QMIX with conservative values: OG-MARL's QMIX+CQL (arXiv 2302.00521), CQL (arXiv 2006.04779) over joint actions.

Adds to QMIX's error how far a soft maximum over joint actions exceeds the value of the joint action in the data. The
maximum is estimated from joint actions, `samples` of them uniform over legal ones and as many drawn from the softmax of
the agents' own values, each weighted by its density.

Deviations: those of `qmix`. The released code hands probabilities to a sampler that reads logits, so that illegal
joint actions enter its regulariser; here all are legal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from baselines import qmix
from baselines.team import SequenceConfig
from madiff.diffusion.networks.action_head import legal_logits
from madiff.interfaces import EnvironmentSpec
from madiff.values import conservative_penalty

NAME = "qmix-cql"


@dataclass
class Config(SequenceConfig):
    """weighted: samples count by the inverse of their density, so that the soft maximum is over all joint actions;
    otherwise it is that of the samples alone, as released."""

    conservative_weight: float = field(default=1.0, metadata={"minimum": 0})
    samples: int = 10
    weighted: bool = True


class QMIXCQL(qmix.QMIX):
    """Learner of QMIX+CQL."""

    config: Config

    def penalty(
        self, values: Tensor, taken: Tensor, total: Tensor, state: Tensor, batch: dict[str, Tensor],
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        actions, log_density = self.proposals(values.detach(), batch.get("available_actions"), generator)
        candidates = self.network.mixer.many(values.gather(-1, actions).transpose(-1, -2), state)
        density = log_density if self.config.weighted else None
        return self.config.conservative_weight * conservative_penalty(candidates, total, log_density=density)

    def proposals(self, values: Tensor, available: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Legal joint actions (..., agent, K) and the logarithm of the probability each was drawn with, (..., K)."""
        drawn = []
        for policy in (torch.zeros_like(values), values):
            logits = torch.log_softmax(legal_logits(policy, available), -1)
            shape = (*logits.shape[:-1], self.config.samples, logits.shape[-1])
            uniform = torch.rand(shape, generator=generator, device=values.device).clamp(min=1e-20)
            actions = (logits[..., None, :] - torch.log(-torch.log(uniform))).argmax(-1)
            drawn.append((actions, logits.gather(-1, actions).sum(-2)))
        actions, log_density = zip(*drawn, strict=True)
        return torch.cat(actions, dim=-1), torch.cat(log_density, dim=-1)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> QMIXCQL:
    return QMIXCQL(config, spec, device, seed)
