"""Hundreds of thousands of steps in memory that does not grow."""

import ctypes
import gc
import os
from pathlib import Path

import pytest
import torch

import envs

COPIES, SHORT, LONG = 512, 100, 500
ROOM = 12 * 2**20
"""Bytes that allocators may keep; whoever kept the observations of these steps would take several times as much."""


def resident():
    """Bytes of this process in memory, after what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def play(env, step, steps, generator):
    """Random legal actions in copies that begin anew when they end; the last step, and the episodes that ended."""
    shape, ended = (env.copies, env.spec.agents), 0
    for _ in range(steps):
        if env.spec.discrete:
            chances = step.available_actions.flatten(0, 1).float()
            actions = torch.multinomial(chances, 1, generator=generator).view(shape)
        else:
            actions = 2 * torch.rand(*shape, env.spec.action_size, generator=generator) - 1
        step = env.step(actions)
        ended += int((step.terminated | step.truncated).sum())
    return step, ended


@pytest.mark.learn
@pytest.mark.parametrize(("name", "options"), [("smac-like", {"agents": 3}), ("particle", {"scenario": "tag"})])
def test_long_play_takes_no_more_memory_than_short_play(name, options):
    env, generator = envs.make_batched(name, COPIES, auto_reset=True, **options), torch.Generator().manual_seed(0)
    step, _ = play(env, env.reset(0), SHORT, generator)
    before = resident()
    step, ended = play(env, step, LONG, generator)
    grown = resident() - before
    assert COPIES * LONG > 250_000 and ended > 2 * COPIES
    kept = step.observations.numel() * 4 * LONG
    assert grown < ROOM < kept / 3, f"{grown / 2**20:.1f} MiB more than before"
    assert bool(step.observations.isfinite().all())
