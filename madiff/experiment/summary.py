"""What a finished run says: summary.json, and the table on the terminal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from madiff.experiment.rollout import Rollout
from madiff.experiment.runtime import synchronize, versions
from madiff.experiment.statistics import bootstrap_ci
from madiff.interfaces import Policy


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The fields of summary.json; returns are undiscounted team returns an episode, in the environment's units.

    steps: training steps done; resumed_from: step this process began at, None if it began the run.
    wall_seconds: of training, all sessions. parameters: of the networks that act; network_calls_per_decision: 1 counts
    a forward of all agents. return_ci95: (low, high). win_rate, arrival_rate (the agents that were at their goals) and
    cost_mean: None, and then left out, where the environment has no winning, no goals or no cost.
    baselines: {"bc": {"return_mean", "return_ci95"}}.
    plan_ms_batch1: median milliseconds of one decision for one environment.
    """

    env: str
    scenario: str
    algo: str
    seed: int
    steps: int
    resumed_from: int | None
    wall_seconds: float
    device: str
    parameters: int
    network_calls_per_decision: float
    episodes: int
    return_mean: float
    return_ci95: tuple[float, float]
    behaviour_return_mean: float | None
    plan_ms_batch1: float
    win_rate: float | None = None
    arrival_rate: float | None = None
    cost_mean: float | None = None
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    world_size: int = 1
    versions: Mapping[str, str] = field(default_factory=versions)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The dict of summary.json: `extra` is laid beside the other keys, and what does not apply is left out."""
        values = asdict(self)
        extra = values.pop("extra")
        for name in ("win_rate", "arrival_rate", "cost_mean"):
            if values[name] is None:
                del values[name]
        return {**extra, **values}


def evaluation_metrics(outcome: Rollout, seed: int = 0) -> dict[str, float]:
    """An evaluation as plain numbers: mean team return with its 95% interval, wins, arrivals, costs, length."""
    low, high = bootstrap_ci(outcome.returns, seed=seed)
    metrics = {
        "return_mean": float(outcome.returns.mean()),
        "return_ci95_low": low,
        "return_ci95_high": high,
        "cost_mean": float(outcome.costs.mean()),
        "length_mean": float(outcome.lengths.mean()),
    }
    if outcome.won is not None:
        metrics["win_rate"] = float(outcome.won.mean())
    if outcome.arrived is not None:
        metrics["arrival_rate"] = float(outcome.arrived.mean())
    return metrics


# title -> (key in a row, how to print the row); a column whose key no row has is not shown.
COLUMNS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "method": ("method", lambda row: row["method"]),
    "return (95% interval)": ("return_mean", lambda row: f"{row['return_mean']:.4g}{_interval(row)}"),
    "score": ("score", lambda row: f"{row['score']:.1f}"),
    "wins": ("win_rate", lambda row: f"{row['win_rate']:.0%}"),
    "arrive": ("arrival_rate", lambda row: f"{row['arrival_rate']:.1%}"),
    "cost": ("cost_mean", lambda row: f"{row['cost_mean']:.4g}"),
    "ms/decision": ("plan_ms_batch1", lambda row: f"{row['plan_ms_batch1']:.3g}"),
    "parameters": ("parameters", lambda row: f"{row['parameters']:,}"),
}


def print_table(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """A row for the method, each baseline and the data's behaviour: return, wins, cost, speed, size."""
    rows = [{"method": summary["algo"], **summary}]
    rows += [{"method": name, **values} for name, values in summary["baselines"].items()]
    if summary["behaviour_return_mean"] is not None:
        rows.append({"method": "behaviour", "return_mean": summary["behaviour_return_mean"]})
    changed = [f"{key}={value}" for key, value in summary.get("env_options", {}).items()]
    title = ", ".join([f"{summary['env']} {summary['scenario']}", *changed, f"{summary['episodes']} episodes"])
    table = Table(title=escape(title.replace("  ", " ").replace(" ,", ",")))
    shown = {title: column for title, column in COLUMNS.items() if any(row.get(column[0]) is not None for row in rows)}
    for title in shown:
        table.add_column(title, justify="left" if title == "method" else "right")
    for row in rows:
        table.add_row(*("" if row.get(key) is None else escape(text(row)) for key, text in shown.values()))
    (console or Console()).print(table)


def _interval(row: Mapping[str, Any]) -> str:
    ends = row.get("return_ci95")
    return "" if ends is None else f" [{ends[0]:.4g}, {ends[1]:.4g}]"


def decision_milliseconds(
    policy: Policy, observations: Tensor, masks: Tensor | None, repeats: int = 20, warm_up: int = 3
) -> float:
    """Median wall time of one decision for one environment, in milliseconds.

    observations (n, agent, O) and masks (n, agent, actions) or None: row 0 is used. The policy is reset before each, so
    that one that carries out several steps of a plan makes a plan every time.
    """
    one, mask = observations[:1], None if masks is None else masks[:1]
    times = []
    with torch.no_grad():
        for _ in range(warm_up + repeats):
            policy.reset(seed=0, n=1)
            synchronize(one.device)
            began = time.perf_counter()
            policy.act(one, mask)
            synchronize(one.device)
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[warm_up:])


def decision_flops(policy: Policy, observations: Tensor, masks: Tensor | None) -> int:
    """Floating-point operations of one decision for one environment: matrix products and convolutions, row 0."""
    policy.reset(seed=0, n=1)
    with Flops() as counter:
        policy.act(observations[:1], None if masks is None else masks[:1])
    return counter.total


class Flops(TorchDispatchMode):
    """Counts the operations of everything below it, backward passes included.

    torch's own FlopCounterMode also follows modules, and fails where a policy takes gradients of its critics.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out
