"""Time of one decision and of one training update, for the default model and the paper's sizes, on the shape of 3m;
and of one decision of every single-agent method, on the shape of Hopper.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import wait
from madiff import build, configuration
from madiff.benchmarking import suite
from madiff.benchmarking.suite import Cell
from madiff.benchmarking.work import compose
from madiff.data import EpisodeStore
from madiff.interfaces import EnvironmentSpec, Policy
from madiff.planners.madiff import MADiff

SPEC = EnvironmentSpec("smac-like", "3m", 3, 30, 9, True, 48, 60)
ROUNDS = 5
MODELS = ("default", "official")
ALGORITHMS = ("madiff-c", "madiff-d")
HOPPER = EnvironmentSpec("mujoco", "Hopper-v5", 1, 11, 3, False, 0, 1000)
SINGLE, TASK = "survey-full", "hopper"
"""The suite whose trained methods are timed, with their options on this task."""
DECISIONS = 8
"""Decisions in a row that are timed together, so that a plan counts for all the steps it is carried out."""


def learner(*options: str, spec: EnvironmentSpec = SPEC, device: str = "cpu") -> MADiff:
    """An untrained learner by the options that `madiff.train` takes, among them algo=NAME."""
    composed = configuration.compose("train", build.defaults(), options)
    return build.make_learner(composed["algo"], spec, torch.device(device), seed=0)


def stir(method: MADiff) -> None:
    """Small random numbers for weights that begin at zero: networks that say nothing would plan the same for all."""
    for network in (method.networks, method.ema.model):
        generator = torch.Generator().manual_seed(0)
        for weight in network.parameters():
            if not weight.any():
                weight.data.copy_(0.02 * torch.randn(weight.shape, generator=generator))


def milliseconds(work: Callable[[], object]) -> float:
    """Median time of one call after a warm-up."""
    work()
    times = []
    for _ in range(ROUNDS):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def row(name: str, ours: float, **more: object) -> dict:
    return {
        "name": name, "ours": ours, "peer": "none", "ratio": None, "unit": "ms", **more,
        "versions": {"torch": torch.__version__},
    }  # fmt: skip


def plan_rows() -> Iterator[dict]:
    """One decision of the whole team: every agent's plan, guidance and inverse dynamics included."""
    for model in MODELS:
        for algo in ALGORITHMS:
            policy = learner(f"algo={algo}", f"model={model}").policy()
            for battles in (1, 10):
                observations = torch.rand(battles, SPEC.agents, SPEC.observation_size)
                masks = torch.ones(battles, SPEC.agents, SPEC.action_size, dtype=torch.bool)
                policy.reset(seed=0, n=battles)
                with FlopCounterMode(display=False) as counter:
                    policy.act(observations, masks)
                yield row(
                    f"decision, {algo}, model={model}, {battles} battles",
                    milliseconds(lambda p=policy, o=observations, m=masks: p.act(o, m)),
                    network_calls=policy.network_calls_per_decision, parameters=policy.parameters,
                    gflop=counter.get_total_flops() / 1e9,
                )  # fmt: skip


def single_rows() -> Iterator[dict]:
    """One decision of every trained method of the suite, batch 1: planning, guidance and choice included."""
    store = random_episodes()
    for cell in suite.load(SINGLE).cells(1, {}):
        if (cell.task.name, cell.method.of) == (TASK, ""):
            policy = single_policy(cell, store)
            took = milliseconds(lambda p=policy: decide(p)) / DECISIONS
            yield row(
                f"decision, {cell.method.label}, Hopper, batch 1", took, decisions_per_second=1e3 / took,
                network_calls=policy.network_calls_per_decision, parameters=policy.parameters,
            )  # fmt: skip


def single_policy(cell: Cell, store: EpisodeStore) -> Policy:
    """A method's policy before its first update: what it has learnt does not change the time of a decision."""
    method = build.make_learner(compose(cell.arguments).algo, HOPPER, torch.device("cpu"), seed=0)
    method.batches(store)  # fits normalisers, and makes the critics of plans that only data ask for
    policy = method.policy()
    policy.reset(seed=0, n=1)
    return policy


def decide(policy: Policy) -> None:
    for _ in range(DECISIONS):
        policy.act(torch.zeros(1, 1, HOPPER.observation_size), None)


def random_episodes() -> EpisodeStore:
    """A few episodes of the right shapes."""
    generator = torch.Generator().manual_seed(0)

    def episode(steps: int) -> dict[str, object]:
        return {
            "observations": torch.randn(steps + 1, 1, HOPPER.observation_size, generator=generator),
            "actions": 2 * torch.rand(steps, 1, HOPPER.action_size, generator=generator) - 1,
            "rewards": torch.rand(steps, 1, generator=generator), "terminated": False, "truncated": True,
        }  # fmt: skip

    return EpisodeStore.from_arrays([episode(steps) for steps in range(60, 80)])


def team_episodes(spec: EnvironmentSpec = SPEC, episodes: int = 20) -> EpisodeStore:
    """A few episodes of a team with discrete actions, all of them legal; observations in [0, 1]."""
    generator = torch.Generator().manual_seed(0)

    def episode(steps: int) -> dict[str, object]:
        lead = (steps, spec.agents)
        return {
            "observations": torch.rand(steps + 1, spec.agents, spec.observation_size, generator=generator),
            "actions": torch.randint(spec.action_size, lead, generator=generator),
            "rewards": torch.rand(lead, generator=generator), "terminated": True, "truncated": False,
            "available_actions": torch.ones(steps + 1, spec.agents, spec.action_size, dtype=torch.bool),
        }  # fmt: skip

    return EpisodeStore.from_arrays([episode(steps) for steps in range(60 - episodes, 60)])


def decision_rows() -> Iterator[dict]:
    """Teams and single agents."""
    yield from plan_rows()
    yield from single_rows()


def random_batch(config: object, n: int) -> dict[str, torch.Tensor]:
    """A batch of the right shapes; its content does not change the time of an update."""
    steps = config.history + 1 + config.horizon
    lead = (n, steps - 1, SPEC.agents)
    return {
        "observations": torch.rand(n, steps, SPEC.agents, SPEC.agents + SPEC.observation_size) * 2 - 1,
        "valid": torch.ones(n, steps, dtype=torch.bool),
        "actions": torch.randint(SPEC.action_size, lead),
        "available_actions": torch.ones(*lead, SPEC.action_size, dtype=torch.bool),
        "transition_valid": torch.ones(n, steps - 1, dtype=torch.bool),
        "returns": torch.rand(n, SPEC.agents),
        "episode": torch.zeros(n, dtype=torch.long),
    }


def train_rows() -> Iterator[dict]:
    """One update (forward, backward, optimiser, averaging) at each model's own batch size."""
    for model in MODELS:
        method = learner("algo=madiff-c", f"model={model}")
        batch = random_batch(method.config, method.config.batch_size)
        generator = torch.Generator().manual_seed(0)
        yield row(
            f"update, madiff-c, model={model}, {method.config.batch_size} windows",
            milliseconds(lambda m=method, b=batch, g=generator: m.update(b, g)),
            parameters=sum(p.numel() for p in method.networks.parameters()),
        )  # fmt: skip
