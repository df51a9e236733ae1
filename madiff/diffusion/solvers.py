"""One step of denoising from level t to level s < t, for every solver.

A solver is a free function `f(x, t, s, pred, evaluate, state) -> x_s`; x is (batch, time, agent, feature), t and s
are `Level`s of Python floats, pred is the prediction at (x, t), evaluate(x, level) asks for another one, and state
lives for one call of the sampler. The last step (sigma_s = 0) returns x0_hat.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from madiff.diffusion.parametrization import Prediction, Rows
from madiff.diffusion.schedule import NAMES, Level, Schedule

Evaluate = Callable[[Rows, Level], Prediction]


@dataclass
class State:
    """What a solver may use and keep during one sampling.

    noise(x): tempered standard normal noise shaped like x; steps: number of steps; history: the multi-step memory.
    """

    noise: Callable[[Tensor], Tensor]
    steps: int
    history: tuple[Tensor, float] | None = None


def ddpm(x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State) -> Rows:
    """Ancestral sampling from the posterior q(x_s | x_t, x0_hat) (arXiv 2006.11239, eq. 6-7)."""
    if s.sigma == 0:
        return pred.x0
    a = t.alpha / s.alpha
    added = t.sigma**2 - a**2 * s.sigma**2
    mean = (a * s.sigma**2 / t.sigma**2) * x + (s.alpha * added / t.sigma**2) * pred.x0
    return mean + (math.sqrt(added) * s.sigma / t.sigma) * state.noise(x)


def ddim(
    x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State, *, eta: float = 0.0
) -> Rows:
    """DDIM (arXiv 2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 has DDPM's variance."""
    if s.sigma == 0:
        return pred.x0
    tau = eta * s.sigma / t.sigma * math.sqrt(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)
    mean = s.alpha * pred.x0 + math.sqrt(s.sigma**2 - tau**2) * pred.eps
    return mean if tau == 0 else mean + tau * state.noise(x)


def _decay(t: Level, s: Level) -> float:
    """exp(-h) with h = lambda_s - lambda_t; 0 in the last step, where h is infinite."""
    return (t.alpha * s.sigma) / (s.alpha * t.sigma)


def _exponential_step(x: Rows, t: Level, s: Level, x0: Rows) -> Rows:
    return (s.sigma / t.sigma) * x + s.alpha * (1 - _decay(t, s)) * x0


def dpmpp1(x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State) -> Rows:
    """DPM-Solver++ of order 1 (arXiv 2211.01095, eq. 9 with k = 1)."""
    return pred.x0 if s.sigma == 0 else _exponential_step(x, t, s, pred.x0)


def dpmpp2m(x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State) -> Rows:
    """DPM-Solver++ (2M), second order from the last two predictions (arXiv 2211.01095, algorithm 2)."""
    if s.sigma == 0:
        return pred.x0
    decay, x0 = _decay(t, s), pred.x0
    h = math.inf if decay == 0 else -math.log(decay)
    if state.history is not None:
        x0_previous, h_previous = state.history
        x0 = x0 + (0.5 * h / h_previous) * (x0 - x0_previous)
    state.history = (pred.x0, h)
    return _exponential_step(x, t, s, x0)


def sde_dpmpp1(x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State) -> Rows:
    """SDE-DPM-Solver++ of order 1 (arXiv 2211.01095, section 6): the same law as DDPM on the same grid."""
    if s.sigma == 0:
        return pred.x0
    decay = _decay(t, s)
    mean = (s.sigma / t.sigma * decay) * x + s.alpha * (1 - decay**2) * pred.x0
    return mean + s.sigma * math.sqrt(1 - decay**2) * state.noise(x)


def edm_euler(x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State) -> Rows:
    """Euler step of dx/dsigma = eps_hat (arXiv 2206.00364, algorithm 1 without line 7)."""
    return pred.x0 if s.sigma == 0 else x + (s.sigma - t.sigma) * pred.eps


def edm_heun(x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State) -> Rows:
    """Heun's second-order step of dx/dsigma = eps_hat (arXiv 2206.00364, algorithm 1); 2n - 1 network calls."""
    if s.sigma == 0:
        return pred.x0
    width = s.sigma - t.sigma
    again = evaluate(x + width * pred.eps, s)
    return x + 0.5 * width * (pred.eps + again.eps)


def flow_euler(x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State) -> Rows:
    """Euler step along the velocity u = eps_hat - x0_hat: x - (t - s) u (arXiv 2209.03003)."""
    return pred.x0 if s.sigma == 0 else x - (t.t - s.t) * (pred.eps - pred.x0)


def consistency(
    x: Rows, t: Level, s: Level, pred: Prediction, evaluate: Evaluate, state: State, *, sigma_min: float = 0.002
) -> Rows:
    """Multi-step consistency sampling: re-noise x0_hat to the next level (arXiv 2303.01469, algorithm 1)."""
    if s.sigma == 0:
        return pred.x0
    return pred.x0 + math.sqrt(max(s.sigma**2 - sigma_min**2, 0.0)) * state.noise(x)


def churn(
    x: Rows,
    t: Level,
    state: State,
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> tuple[Rows, Level]:
    """Raise the noise before a step by gamma = min(S_churn / n, sqrt(2) - 1) (arXiv 2206.00364, algorithm 2)."""
    gamma = min(S_churn / state.steps, math.sqrt(2) - 1) if S_min <= t.sigma <= S_max else 0.0
    if gamma == 0:
        return x, t
    sigma = t.sigma * (1 + gamma)
    return x + S_noise * math.sqrt(sigma**2 - t.sigma**2) * state.noise(x), Level(sigma, t.alpha, sigma)


def _stay(x: Rows, t: Level, state: State) -> tuple[Rows, Level]:
    return x, t


@dataclass(frozen=True)
class Solver:
    """A step function with its options bound, what it does to x before a step, and the schedules it is right for."""

    name: str
    step: Callable[..., Rows]
    prepare: Callable[[Rows, Level, State], tuple[Rows, Level]] = _stay
    schedules: tuple[str, ...] = NAMES

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError if the solver is not defined on the schedule."""
        if schedule.name not in self.schedules:
            allowed = ", ".join(self.schedules)
            raise ValueError(f"solver {self.name!r} does not fit the schedule {schedule.name!r}; allowed: {allowed}")


SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Solver("ddpm", ddpm),
        Solver("ddim", ddim),
        Solver("dpmpp1", dpmpp1),
        Solver("dpmpp2m", dpmpp2m),
        Solver("sde_dpmpp1", sde_dpmpp1),
        Solver("edm_euler", edm_euler, churn, ("edm",)),
        Solver("edm_heun", edm_heun, churn, ("edm",)),
        Solver("flow_euler", flow_euler, schedules=("flow",)),
        Solver("consistency", consistency, schedules=("edm",)),
    )
}

REPEATABLE = ("ddim", "dpmpp1", "dpmpp2m", "edm_heun", "flow_euler")  # draw no noise unless their options ask for it


def make_solver(name: str, **options: float) -> Solver:
    """A solver by name; options are its own keywords: eta (ddim), S_churn, S_min, S_max, S_noise (edm_*), sigma_min."""
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown; allowed: {', '.join(SOLVERS)}")
    solver = SOLVERS[name]
    own, before = _keywords(solver.step), _keywords(solver.prepare)
    for option in options:
        if option not in own | before:
            allowed = ", ".join(sorted(own | before)) or "none"
            raise ValueError(f"option {option!r} is unknown to the solver {name!r}; allowed: {allowed}")
    step = partial(solver.step, **{k: v for k, v in options.items() if k in own})
    prepare = partial(solver.prepare, **{k: v for k, v in options.items() if k in before})
    return Solver(name, step, prepare, solver.schedules)


def _keywords(function: Callable[..., object]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
