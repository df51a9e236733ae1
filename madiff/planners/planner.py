"""What every planner has besides its denoiser: critics of its plans, and the meaning of a plan's features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.training import GradientLearner
from madiff.interfaces import EnvironmentSpec, PlanLayout
from madiff.values.plan_values import PlanValues


class Planned(NamedTuple):
    """What whoever watches is shown.

    plans (B, T, agent, F): those that will be carried out; known: which entries in-painting held, bool, likewise;
    told: what hooks were told, (B, ...) each; info: what hooks reported of all candidates, in order.
    """

    plans: Tensor
    known: Tensor
    told: dict[str, Tensor]
    info: dict[str, list[Tensor]]


Watch = Callable[[Planned], None]


class Chooser(Protocol):
    """Picks one of several plans for the same moment."""

    candidates: int

    def __call__(self, plans: Tensor, context: dict[str, Tensor], info: dict[str, list[Tensor]]) -> Tensor:
        """(B,) int64: which of plans (B, candidates, T, agent, F) is carried out.

        context: what hooks find in their ctx besides the sampler's own, each (B, ...): time, and what was told; info:
        what hooks reported of all candidates, (B * candidates,) each, in order.
        """
        ...


class Planner(GradientLearner):
    """Base of learners that diffuse plans.

    A subclass has config (with `values`), spec, device, schedule, parametrization, and says `plan_features` and
    `plan_length`. Critics exist where the data was worth learning them from: they are made when the data is seen, or
    when weights are loaded that hold some.
    """

    _values: PlanValues | None = None
    values_of_returns: ClassVar[bool] = False  # whether critics are learnt from data without costs
    source: WindowSampler | None = None
    calibrated = -1
    seed = 0

    @property
    @abstractmethod
    def plan_features(self) -> int:
        """Length of a waypoint."""

    @property
    @abstractmethod
    def plan_length(self) -> int:
        """Waypoints of a plan, past ones included."""

    @abstractmethod
    def layout(self) -> PlanLayout:
        """What a waypoint's features mean."""

    @abstractmethod
    def plans(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The plans (B, T, agent, F) of a window batch as they are diffused, and the mask of what is known of them."""

    @property
    def values(self) -> PlanValues | None:
        """The critics of plans, calibrated as they are now; None where the data was not worth any."""
        self._calibrate()
        return self._values

    def fit_values(self, store: EpisodeStore, source: WindowSampler) -> None:
        """Make and fit the critics that this data is good for."""
        quantities = self.config.values.quantities(bool(store.costs.any()), self.values_of_returns)
        self._values = self._make_values(quantities) if quantities else None
        self.source = source
        if self._values is not None:
            self._values.fit(store)

    def update_values(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the critics on a window batch; draws from the generator only where there are some."""
        if self._values is None:
            return {}
        return self._values.update(*self.plans(batch, generator), batch, generator)

    def _calibrate(self) -> None:
        """Score the critics on the episodes they have not seen, once after every update; needs the data."""
        if self._values is None or self.source is None or self.calibrated == self._values.updates:
            return
        self.calibrated = self._values.updates
        if len(self._values.calibration_rows):
            batch = self.source.gather(self._values.calibration_rows)
            x0, _ = self.plans(batch, torch.Generator(self.device).manual_seed(0))
            self._values.calibrate(x0, batch)

    def weights(self) -> dict[str, Tensor]:
        values = {} if self.values is None else self.values.weights()
        return super().weights() | {f"values.{key}": value for key, value in values.items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        super().load_weights(weights)
        values = {key.removeprefix("values."): v for key, v in weights.items() if key.startswith("values.")}
        if values and self._values is None:
            self._values = self._make_values(("return", "cost")[: len(values["fixed.scales.shift"])])
        if self._values is not None:
            self._values.load_weights(values)

    def training_state(self) -> dict[str, Any]:
        return super().training_state() | ({} if self._values is None else {"values": self._values.training_state()})

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        if self._values is not None:
            self._values.load_training_state(state["values"])

    def _make_values(self, quantities: tuple[str, ...]) -> PlanValues:
        return PlanValues(
            self.config.values, self.spec, self.plan_features, self.plan_length, quantities, self.schedule,
            self.parametrization, self.device, self.seed,
        )  # fmt: skip


def observation_names(spec: EnvironmentSpec) -> tuple[str, ...]:
    """The environment's own names, or numbered ones."""
    return tuple(spec.observation_names) or tuple(f"observation_{i}" for i in range(spec.observation_size))


def make_layout(
    spec: EnvironmentSpec, leading: Sequence[str], normalizer: Any, history: int = 0, dt: float = 1.0
) -> PlanLayout:
    """The layout of plans whose features are `leading`, which need no units, then the normalised observation."""
    names = (*leading, *observation_names(spec))
    split = [len(leading), spec.observation_size]

    def through(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def changed(x: Tensor) -> Tensor:
            kept, observed = x.split(split, dim=-1)
            return torch.cat([kept, change(observed)], dim=-1)

        return changed

    # Unclipped: a waypoint that a projection moves beyond the data is where it was moved to.
    normalize, denormalize = map(through, normalizer.unclipped())
    return PlanLayout(names, normalize, denormalize, history, dt)
