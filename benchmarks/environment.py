"""Environment steps per second under random legal actions, against JaxMARL SMAX.

Both sides make observations, state, masks and reward and reset finished battles at every step; a step is one step of
one whole battle (8 engine loops), whatever the number of its units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import envs
from benchmarks.peers import Peer, installed
from benchmarks.timing import alternate, row

ROUNDS = 5
# scenario, copies, steps per chunk, whether also compiled (about a minute each)
CASES = (("3m", 1, 200, False), ("3m", 64, 100, False), ("3m", 1024, 40, True), ("2s3z", 256, 40, False))


def stepper(scenario: str, copies: int, steps: int, *, compile: bool, device: str) -> Callable[[], int]:
    """A chunk of steps of one batched environment, warmed up."""
    env = envs.make_batched(
        "smac-like", copies=copies, device=device, scenario=scenario, auto_reset=True, compile=compile
    )
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


def rows() -> Iterator[dict]:
    """Eager and compiled against the peer on the CPU, the single ParallelEnv, and the GPU where there is one."""
    for scenario, copies, steps, compiled in CASES:
        peer = Peer("jaxmarl", "smax.py", scenario, copies, steps) if installed("jaxmarl") else None
        for mode in (False, True) if compiled else (False,):
            ours = stepper(scenario, copies, steps, compile=mode, device="cpu")
            own, other = alternate(ours, peer, ROUNDS)
            name = f"smac-like {scenario}, {copies} copies, {'compiled' if mode else 'eager'}, cpu"
            yield row(name, own, other, "steps/s", peer.versions if peer else {})
        if peer is not None:
            peer.close()
    own, _ = alternate(single_copy(300), None, ROUNDS)
    yield row("smac-like 3m, one ParallelEnv, cpu", own, [], "steps/s", {}) | {"peer": "none"}
    if torch.cuda.is_available():
        for copies in (1024, 4096, 16384, 65536):
            ours = stepper("3m", copies, 40, compile=True, device="cuda")
            own, _ = alternate(ours, None, ROUNDS)
            yield row(f"smac-like 3m, {copies} copies, compiled, cuda", own, [], "steps/s", {}) | {"peer": "none"}
