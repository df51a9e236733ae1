import io
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from madiff.experiment.rollout import Rollout
from madiff.experiment.summary import Summary, decision_flops, decision_milliseconds, evaluation_metrics, print_table

FIELDS = {
    "env": "smac-like",
    "scenario": "3m",
    "algo": "madiff-d",
    "seed": 0,
    "steps": 1000,
    "resumed_from": None,
    "wall_seconds": 12.5,
    "device": "cpu",
    "parameters": 1234567,
    "network_calls_per_decision": 15.0,
    "episodes": 100,
    "return_mean": 18.25,
    "return_ci95": (17.5, 19.0),
    "behaviour_return_mean": 15.0,
    "plan_ms_batch1": 20.44,
}
MEASURED = {"win_rate": 0.75, "arrival_rate": 0.875, "cost_mean": 0.5}
BASELINES = {"bc": {"return_mean": 14.0, "return_ci95": (13.0, 15.0)}}


def test_the_summary_holds_every_promised_key():
    written = Summary(**FIELDS, baselines=BASELINES, **MEASURED, extra={"note": 1}).to_json()
    promised = {*FIELDS, "world_size", "baselines", *MEASURED, "versions"}
    assert set(written) == promised | {"note"}
    assert written["world_size"] == 1 and "torch" in written["versions"] and written["baselines"] == BASELINES


def test_what_an_environment_has_none_of_is_left_out():
    assert set(MEASURED).isdisjoint(Summary(**FIELDS).to_json())


def printed(**more):
    out = io.StringIO()
    print_table(Summary(**FIELDS, **more).to_json(), Console(file=out, width=120))
    return out.getvalue()


def test_the_table_sets_the_method_beside_its_baselines():
    text = printed(baselines=BASELINES, win_rate=0.75, arrival_rate=0.875)
    rows = {name: next(line for line in text.splitlines() if name in line) for name in ("madiff-d", "bc", "behaviour")}
    assert all(part in rows["madiff-d"] for part in ("18.25 [17.5, 19]", "75%", "87.5%", "20.4", "1,234,567"))
    assert "14 [13, 15]" in rows["bc"] and "15 " in rows["behaviour"]
    assert "cost" not in text and "wins" in text and "wins" not in printed()


def test_evaluation_metrics_summarise_a_rollout():
    returns = np.array([[1.0, 3.0], [5.0, 7.0], [3.0, 3.0]])
    won = np.array([True, False, True])
    zeros = np.zeros(3, np.int64)
    arrived = np.array([[True, True], [True, False], [False, False]])
    outcome = Rollout(returns, returns / 10, np.array([4, 5, 6]), won, won, arrived, zeros, zeros, zeros, 1.0)
    metrics = evaluation_metrics(outcome)
    assert metrics["return_mean"] == pytest.approx(11 / 3) and metrics["cost_mean"] == pytest.approx(11 / 30)
    assert metrics["win_rate"] == pytest.approx(2 / 3) and metrics["arrival_rate"] == 0.5
    assert metrics["length_mean"] == 5
    assert 2 <= metrics["return_ci95_low"] < 11 / 3 < metrics["return_ci95_high"] <= 6
    assert all(type(value) is float for value in metrics.values())


class Slow:
    """Takes 20 ms to plan, no time to carry the plan out, and half a second for its first decision."""

    def __init__(self):
        self.seen = []

    def reset(self, seed, n):
        self.n, self.planned = n, False

    def act(self, observations, masks, active=None):
        self.seen.append((tuple(observations.shape), None if masks is None else tuple(masks.shape), self.n))
        time.sleep(0.5 if len(self.seen) == 1 else 0.0 if self.planned else 0.02)
        self.planned = True
        return torch.zeros(observations.shape[:2], dtype=torch.int64)


@pytest.mark.parametrize("masks", [None, torch.ones(8, 3, 5, dtype=torch.bool)])
def test_decision_time_is_the_median_at_batch_one(masks):
    policy = Slow()
    assert 20 <= decision_milliseconds(policy, torch.zeros(8, 3, 4), masks, repeats=5) < 100
    assert set(policy.seen) == {((1, 3, 4), None if masks is None else (1, 3, 5), 1)} and len(policy.seen) == 8


def test_flops_of_one_decision_are_those_of_its_matrix_products():
    class Linear:
        def reset(self, seed, n):
            self.weight = torch.ones(4, 5)

        def act(self, observations, masks, active=None):
            return (observations @ self.weight).argmax(-1)

    assert decision_flops(Linear(), torch.zeros(8, 3, 4), None) == 2 * 3 * 4 * 5


def test_flops_are_torch_s_own_count_and_gradients_count_too():
    network = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(12, 1))

    class Plain:
        def reset(self, seed, n):
            pass

        def act(self, observations, masks):
            with torch.no_grad():
                return network(observations)

    class Guided(Plain):
        def act(self, observations, masks):
            x = observations.clone().requires_grad_()
            return torch.autograd.grad(network(x).sum(), x)[0]

    x = torch.randn(1, 2, 5)
    with FlopCounterMode(display=False) as counter:
        Plain().act(x, None)
    forward = decision_flops(Plain(), x, None)
    assert forward == counter.get_total_flops() == 2 * (2 * 4 * 3 * 3 + 12)
    assert decision_flops(Guided(), x, None) > 1.5 * forward
