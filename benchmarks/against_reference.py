"""MADiff at its official size against the plain reference: training updates and plans per second, in one process.

Both sides train on the same windows and plan from the same weights, histories and noise. Ours in bf16, where the
processor multiplies it, stands beside the reference in float32, as it was published, and in bf16 too; and our plans of
compiled networks (`hardware.compile=true`), where they can be compiled, beside both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.planning import learner, team_episodes
from benchmarks.reference import Reference, Sizes, Windows
from benchmarks.timing import computing, has_bf16, in_turns, row
from madiff.data import EpisodeStore
from madiff.diffusion.compiling import Compiled, trial
from madiff.planners.madiff import MADiff

ROUNDS = 5
BATTLES = 10
OPTIONS = ("algo=madiff-c", "model=official")
Chunk = Callable[[], int]
Manner = Callable[[str], AbstractContextManager[object]]


def reference(ours: MADiff) -> Reference:
    """The reference with the sizes and the weights of ours."""
    config, spec = ours.config, ours.spec
    sizes = Sizes(
        features=spec.agents + spec.observation_size, actions=spec.action_size, agents=spec.agents,
        history=config.history, horizon=config.horizon, width=config.width, multipliers=tuple(config.multipliers),
        inverse_width=config.inverse_width, diffusion_steps=config.diffusion_steps,
        sampler_steps=config.sampler_steps, learning_rate=config.learning_rate,
        condition_dropout=config.condition_dropout, guidance_weight=config.guidance_weight,
        temperature=config.temperature, discount=config.discount, returns_scale=config.returns_scale,
        ema_decay=config.ema_decay, ema_every=config.ema_every, ema_start=config.ema_start,
    )  # fmt: skip
    return Reference(sizes, ours.networks.state_dict())


def arrays(store: EpisodeStore, observations: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """The episodes of a store one by one, with observations as networks see them."""
    found = []
    for episode, (start, steps) in enumerate(zip(store.offsets.tolist(), store.lengths.tolist(), strict=True)):
        observed = slice(start + episode, start + episode + steps + 1)
        found.append({
            "observations": observations[observed].numpy(),
            "available_actions": store.available_actions[observed].numpy(),
            "actions": store.actions[start : start + steps].numpy(),
            "rewards": store.rewards[start : start + steps].numpy(),
        })  # fmt: skip
    return found


def training(ours: MADiff, plain: Reference) -> tuple[Chunk, Chunk]:
    """One update each, from data to averaged weights."""
    store = team_episodes(ours.spec)
    source = ours.batches(store)
    windows = Windows(arrays(store, ours.preprocessing.encode(store.observations)), plain.sizes)
    batches = endless(DataLoader(windows, ours.config.batch_size, shuffle=True, drop_last=True))
    own, other = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)

    def update() -> int:
        ours.update(source.sample(own), own)
        return 1

    def plain_update() -> int:
        plain.update(next(batches), other)
        return 1

    return update, plain_update


def endless(loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    while True:
        yield from loader


def planning(ours: MADiff, plain: Reference, battles: int = BATTLES) -> tuple[Chunk, Chunk]:
    """Plans for so many battles at once, with guidance, each."""
    policy, (history, noise, returns) = ours.policy(), situation(ours, battles)
    policy.reset(seed=0, n=battles)
    ego = torch.zeros(battles, dtype=torch.long)

    def plan() -> int:
        with torch.no_grad():
            policy.plan(history, ego, noise, returns)
        return battles

    def plain_plan() -> int:
        plain.plan(history, noise, returns)
        return battles

    return plan, plain_plan


def situation(ours: MADiff, battles: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a plan is made of: histories (B, history + 1, agent, F), noise (B, T, agent, F), returns (B, agent)."""
    generator = torch.Generator().manual_seed(0)
    agents, config = ours.spec.agents, ours.config
    shape = (battles, ours.plan_length, agents, ours.plan_features)
    history = 2 * torch.rand(battles, config.history + 1, *shape[2:], generator=generator) - 1
    history[..., :agents] = torch.eye(agents)
    return history, torch.randn(shape, generator=generator), torch.ones(battles, agents)


def autocast(precision: str) -> AbstractContextManager[object]:
    """What work of the reference is done in."""
    return nullcontext() if precision == "float32" else torch.autocast("cpu", torch.bfloat16)


def within(precision: str, manner: Manner, chunk: Chunk) -> Chunk:
    def run() -> int:
        with manner(precision):
            return chunk()

    return run


def rows() -> Iterator[dict]:
    """Updates, then plans; of ours and of the reference in every precision that the processor has."""
    ours = learner(*OPTIONS)
    plain = reference(ours)
    precisions = ("float32", "bf16") if has_bf16() else ("float32",)
    update = f"update, {ours.config.batch_size} windows"
    yield from compared(update, "updates/s", *training(ours, plain), precisions, {"ours": computing})
    manners = {"ours": computing} | ({"ours compiled": partial(computing, compiler=Compiled(1))} if compiles() else {})
    yield from compared(f"plan, {BATTLES} battles", "plans/s", *planning(ours, plain), precisions, manners)


def compared(
    job: str, unit: str, own: Chunk, other: Chunk, precisions: Sequence[str], manners: Mapping[str, Manner]
) -> Iterator[dict]:
    """Ours in every manner and precision over the reference in float32, and over it in the same precision."""
    sides = {name: (manner, own) for name, manner in manners.items()} | {"plain": (autocast, other)}
    rates = in_turns({f"{side} {p}": within(p, *sides[side]) for p in precisions for side in sides}, ROUNDS)
    for manner in manners:
        for mine, theirs in ((mine, theirs) for mine in precisions for theirs in precisions):
            if (mine, theirs) != ("float32", "bf16"):
                how = f"{mine}{manner.removeprefix('ours')}"
                name = f"{job}, {how} / reference in {theirs}"
                yield row(name, rates[f"{manner} {mine}"], rates[f"plain {theirs}"], unit, {})


def compiles() -> bool:
    """Whether networks can be compiled here."""
    try:
        trial(torch.device("cpu"))
    except Exception:  # whatever torch.compile misses: a compiler, its headers, room to write to
        return False
    return True
