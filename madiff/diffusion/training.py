"""What every learner of one optimiser shares: the gradient step with averaged weights, and its whole state by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from madiff.diffusion import sharing
from madiff.diffusion.ema import EMA


class NamedWeights(ABC):
    """All weights of several modules as one flat dict: `part.key`."""

    @abstractmethod
    def _parts(self) -> dict[str, nn.Module]:
        """The modules by the name of their part."""

    def weights(self) -> dict[str, Tensor]:
        return {f"{part}.{key}": v for part, module in self._parts().items() for key, v in module.state_dict().items()}

    @property
    def divisible(self) -> bool:
        """Whether several processes would have something of its training to divide, see `sharing`."""
        return sharing.divisible(self._parts().values())

    @property
    def heeds_computing(self) -> bool:
        """Whether some network of its is computed as `computing` says."""
        return any(isinstance(m, sharing.RowWise) for part in self._parts().values() for m in part.modules())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        for part, module in self._parts().items():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})


class GradientLearner(NamedWeights):
    """Base of learners: `trained` networks under one optimiser and their moving average, plus `fixed` modules.

    fixed: what is fitted to the data once (normalisers, scales) and belongs to the weights.
    """

    def __init__(self, trained: nn.Module, fixed: nn.Module, optimizer: Optimizer, ema: EMA) -> None:
        self.trained, self.fixed, self.optimizer, self.ema = trained, fixed, optimizer, ema
        self.updates = 0

    def gradient_step(self, loss: Tensor, clip: float) -> Tensor:
        """The optimiser step that ends an update, as `descend`; averaged weights follow."""
        norm = self.descend(loss, clip)
        self.updates += 1
        self.ema.update(self.updates)
        return norm

    def descend(self, loss: Tensor, clip: float) -> Tensor:
        """One optimiser step on loss with the gradient's norm clipped; returns the norm before clipping.

        Networks that have no part in the loss stay as they are.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        sharing.settle(self.trained.parameters())
        norm = nn.utils.clip_grad_norm_(self.trained.parameters(), clip)
        self.optimizer.step()
        return norm

    def _parts(self) -> dict[str, nn.Module]:
        return {"trained": self.trained, "averaged": self.ema.model, "fixed": self.fixed}

    def training_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
