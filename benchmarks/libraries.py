"""The libraries that researchers build on, at the same job: diffusers' DDIM loop and d3rlpy's TD3+BC update.

diffusers drives our own network with our weights, from the same noise to the same plan, so the row compares what is
around the network. d3rlpy trains TD3+BC of the same sizes on the same episodes, batches drawn in both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.against_reference import situation
from benchmarks.peers import started
from benchmarks.planning import HOPPER, MODELS, learner, random_episodes, stir
from benchmarks.timing import alternate, row
from madiff.data import EpisodeStore
from madiff.planners.madiff import MADiff

ROUNDS = 5
BATTLES = 10
STEPS = 10  # divides the 200 noise levels, as diffusers' step to the level before takes for granted
UPDATES = 50  # of TD3+BC in a chunk
NETWORK = ("network", "width", "layers", "heads", "multipliers", "agent_attention")


def rows() -> Iterator[dict]:
    yield from ddim_rows()
    yield td3_bc_row()


def ddim_rows() -> Iterator[dict]:
    """Plans for ten battles, with guidance, by the default network and the official one."""
    for model in MODELS:
        ours = learner("algo=madiff-c", f"model={model}", "algo.solver=ddim", f"algo.sampler_steps={STEPS}")
        stir(ours)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.pt"
            plan, told = planning(ours)
            torch.save(told, file)
            peer, missing = started("diffusers", "diffusers_ddim.py", file, torch.get_num_threads())
        versions = {} if peer is None else {**peer.versions}
        error = versions.pop("error", None)
        own, other = alternate(plan, peer, ROUNDS)
        name = f"plan, {BATTLES} battles, model={model}, {STEPS} DDIM steps / diffusers"
        yield row(name, own, other, "plans/s", versions, missing) | {"peer_error": error}
        if peer is not None:
            peer.close()


def planning(ours: MADiff) -> tuple[Callable[[], int], dict[str, Any]]:
    """Ours, warmed up, and all that another sampler needs to make the same plan with the same network."""
    policy, (history, noise, returns) = ours.policy(), situation(ours, BATTLES)
    policy.reset(seed=0, n=BATTLES)
    ego, config = torch.zeros(BATTLES, dtype=torch.long), ours.config

    def plan() -> torch.Tensor:
        with torch.no_grad():
            return policy.plan(history, ego, noise, returns)

    def chunk() -> int:
        plan()
        return BATTLES

    value, mask = policy.known(history, ego)
    return chunk, {
        "options": {name: getattr(config, name) for name in NETWORK}, "shape": [noise.shape[-1], noise.shape[1]],
        "weights": ours.ema.model["denoiser"].state_dict(), "parametrization": config.parametrization,
        "levels": config.diffusion_steps, "steps": STEPS, "temperature": config.temperature,
        "weight": config.guidance_weight, "value": value, "mask": mask, "noise": noise, "returns": returns,
        "plan": plan(),
    }  # fmt: skip


def td3_bc_row() -> dict:
    """Updates on the shape of Hopper, each with its batch drawn."""
    ours = learner("algo=td3-bc", spec=HOPPER)
    store = random_episodes()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "episodes.npz"
        np.savez(file, **transitions(store))
        threads = torch.get_num_threads()
        peer, missing = started("d3rlpy", "d3rlpy_td3_bc.py", file, ours.config.batch_size, UPDATES, threads)
        source, generator = ours.batches(store), torch.Generator().manual_seed(0)

        def chunk() -> int:
            for _ in range(UPDATES):
                ours.update(source.sample(generator), generator)
            return UPDATES

        chunk()
        own, other = alternate(chunk, peer, ROUNDS)
    if peer is not None:
        peer.close()
    name = f"update, td3-bc, Hopper, {ours.config.batch_size} transitions / d3rlpy"
    return row(name, own, other, "updates/s", {} if peer is None else peer.versions, missing)


def transitions(store: EpisodeStore) -> dict[str, np.ndarray]:
    """Steps of a single agent one after the other, as d3rlpy wants them; the last of each ends its episode."""
    last = torch.zeros(store.transitions, dtype=torch.bool)
    last[store.offsets + store.lengths - 1] = True
    rows = torch.arange(store.transitions) + store.episode_of
    return {
        "observations": store.observations[rows, 0].numpy(),
        "actions": store.actions[:, 0].numpy(),
        "rewards": store.rewards[:, 0].numpy(),
        "terminals": (last & store.terminated[store.episode_of]).float().numpy(),
        "timeouts": (last & store.truncated[store.episode_of]).float().numpy(),
    }
