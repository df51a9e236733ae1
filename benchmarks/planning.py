"""Time of one decision and of one training update, for the default model and the paper's sizes, on the shape of 3m."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from madiff import build, configuration
from madiff.interfaces import EnvironmentSpec
from madiff.planners.madiff import MADiff

SPEC = EnvironmentSpec("smac-like", "3m", 3, 30, 9, True, 48, 60)
ROUNDS = 5
MODELS = ("default", "official")
ALGORITHMS = ("madiff-c", "madiff-d")


def learner(algo: str, model: str) -> MADiff:
    options = configuration.compose("train", build.defaults(), [f"algo={algo}", f"model={model}"])
    return build.make_learner(options["algo"], SPEC, torch.device("cpu"), seed=0)


def milliseconds(work: Callable[[], object]) -> float:
    """Median time of one call after a warm-up."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
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
            policy = learner(algo, model).policy()
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
        method = learner("madiff-c", model)
        batch = random_batch(method.config, method.config.batch_size)
        generator = torch.Generator().manual_seed(0)
        yield row(
            f"update, madiff-c, model={model}, {method.config.batch_size} windows",
            milliseconds(lambda m=method, b=batch, g=generator: m.update(b, g)),
            parameters=sum(p.numel() for p in method.networks.parameters()),
        )  # fmt: skip
