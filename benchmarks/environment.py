"""Environment steps per second under random legal actions: smac-like against JaxMARL SMAX, MPE2's twins against MPE2.

Both sides make observations, state, masks and reward and reset finished episodes at every step; a step is one step of
one whole environment (in smac-like 8 engine loops), whatever the number of its agents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version

import numpy as np
import torch

import envs
from benchmarks.peers import started
from benchmarks.timing import alternate, rate, row

ROUNDS = 5
# scenario, copies, steps per chunk, whether also compiled (about a minute each)
CASES = (("3m", 1, 200, False), ("3m", 64, 100, False), ("3m", 1024, 40, True), ("2s3z", 256, 40, False))
TWINS = ("simple_spread", "simple_tag")
TWIN_COPIES = 1024


def stepper(
    scenario: str, copies: int, steps: int, *, compile: bool, device: str, env: str = "smac-like"
) -> Callable[[], int]:
    """A chunk of steps of one batched environment, warmed up."""
    env = envs.make_batched(env, copies=copies, device=device, scenario=scenario, auto_reset=True, compile=compile)
    generator = torch.Generator(device).manual_seed(0)
    latest = [env.reset(seed=0)]

    def chunk() -> int:
        timestep = latest[0]
        for _ in range(steps):
            masks = timestep.available_actions
            actions = torch.rand(masks.shape, generator=generator, device=device).mul_(masks).argmax(-1)
            timestep = env.step(actions)
        latest[0] = timestep
        return steps * copies

    chunk()
    return chunk


def single_copy(steps: int) -> Callable[[], int]:
    """The PettingZoo ParallelEnv, as a user steps it: dictionaries in and out."""
    env = envs.make("smac-like", scenario="3m")
    generator = torch.Generator().manual_seed(0)
    latest = [env.reset(seed=0)[1]]

    def chunk() -> int:
        infos = latest[0]
        for _ in range(steps):
            masks = {a: torch.as_tensor(infos[a]["action_mask"]).float() for a in env.agents}
            actions = {a: int(torch.multinomial(mask, 1, generator=generator)) for a, mask in masks.items()}
            infos = env.step(actions)[4]
            if not env.agents:
                infos = env.reset()[1]
        latest[0] = infos
        return steps

    chunk()
    return chunk


def mpe2_itself(scenario: str, steps: int) -> Callable[[], int]:
    """A chunk of steps of MPE2's own ParallelEnv, one copy in this process."""
    env = import_module(f"mpe2.{scenario}_v3").parallel_env()
    generator = np.random.default_rng(0)
    env.reset(seed=0)

    def chunk() -> int:
        choices = generator.integers(5, size=(steps, len(env.possible_agents))).tolist()
        for choice in choices:
            env.step(dict(zip(env.possible_agents, choice, strict=True)))
            env.state()
            if not env.agents:
                env.reset()
        return steps

    chunk()
    return chunk


def rows() -> Iterator[dict]:
    """All environments, the cases on a GPU where there is one."""
    yield from smac_like_rows()
    yield from mpe2_rows()


def mpe2_rows() -> Iterator[dict]:
    """The batched twins against MPE2 itself, round by round in one process."""
    for scenario in TWINS:
        peer = mpe2_itself(scenario, 500)
        for compiled in (False, True):
            ours = stepper(scenario, TWIN_COPIES, 100, compile=compiled, device="cpu", env="mpe2")
            own, other = zip(*((rate(ours), rate(peer)) for _ in range(ROUNDS)), strict=True)
            name = f"mpe2 {scenario}, {TWIN_COPIES} copies, {'compiled' if compiled else 'eager'}, cpu"
            yield row(name, list(own), list(other), "steps/s", {"mpe2": version("mpe2")})


def smac_like_rows() -> Iterator[dict]:
    """Eager and compiled against the peer on the CPU, the single ParallelEnv, and the GPU where there is one."""
    for scenario, copies, steps, compiled in CASES:
        peer, missing = started("jaxmarl", "smax.py", scenario, copies, steps)
        for mode in (False, True) if compiled else (False,):
            ours = stepper(scenario, copies, steps, compile=mode, device="cpu")
            own, other = alternate(ours, peer, ROUNDS)
            name = f"smac-like {scenario}, {copies} copies, {'compiled' if mode else 'eager'}, cpu"
            yield row(name, own, other, "steps/s", peer.versions if peer else {}, missing)
        if peer is not None:
            peer.close()
    own, _ = alternate(single_copy(300), None, ROUNDS)
    yield row("smac-like 3m, one ParallelEnv, cpu", own, [], "steps/s", {}) | {"peer": "none"}
    if torch.cuda.is_available():
        for copies in (1024, 4096, 16384, 65536):
            ours = stepper("3m", copies, 40, compile=True, device="cuda")
            own, _ = alternate(ours, None, ROUNDS)
            yield row(f"smac-like 3m, {copies} copies, compiled, cuda", own, [], "steps/s", {}) | {"peer": "none"}
