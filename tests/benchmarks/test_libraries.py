"""Other libraries at the same job: what they are handed makes the same plan, and the same transitions."""

import importlib
import math
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import libraries, peers, planning, speed

SCRIPT = "benchmarks.peers.diffusers_ddim"
TINY = ("algo=madiff-c", "algo.solver=ddim", f"algo.sampler_steps={libraries.STEPS}")
NETWORKS = {
    "transformer": ("algo.width=16", "algo.layers=1", "algo.heads=2"),
    "unet": ("algo.network=unet", "algo.width=16", "algo.multipliers=[1,2]", "algo.parametrization=epsilon"),
}


class DDIM:
    """What diffusers documents of its DDIMScheduler, written from the paper (arXiv 2010.02502, eq. 12, eta 0)."""

    init_noise_sigma = 1.0

    def __init__(self, levels, beta_schedule, prediction_type, clip_sample, timestep_spacing):
        assert (beta_schedule, clip_sample, timestep_spacing) == ("squaredcos_cap_v2", True, "trailing")
        self.config, self.prediction = SimpleNamespace(num_train_timesteps=levels), prediction_type
        bar = [math.cos((i / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(levels + 1)]
        kept = [max(b / a, 0.001) for a, b in zip(bar[:-1], bar[1:], strict=True)]
        self.products = torch.tensor(kept, dtype=torch.float64).cumprod(0).tolist()

    def set_timesteps(self, steps):
        self.jump = self.config.num_train_timesteps // steps
        self.timesteps = torch.arange(self.config.num_train_timesteps, 0, -self.jump) - 1

    def step(self, output, timestep, x):
        now = self.products[int(timestep)]
        then = self.products[int(timestep) - self.jump] if timestep >= self.jump else 1.0
        if self.prediction == "epsilon":
            clean, noise = (x - (1 - now) ** 0.5 * output) / now**0.5, output
        else:
            clean, noise = output, (x - now**0.5 * output) / (1 - now) ** 0.5
        return SimpleNamespace(prev_sample=then**0.5 * clean.clamp(-1, 1) + (1 - then) ** 0.5 * noise)


@pytest.fixture
def script(monkeypatch):
    """The peer's script with the stand-in for its library; standard output stays what it was."""
    library = ModuleType("diffusers")
    library.DDIMScheduler, library.__version__ = DDIM, "0"
    monkeypatch.setitem(sys.modules, "diffusers", library)
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = os.dup(1)
    try:
        yield importlib.import_module(SCRIPT)
    finally:
        os.dup2(out, 1)
        os.close(out)
        sys.modules.pop(SCRIPT, None)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_file_of_a_plan_makes_the_same_plan_elsewhere(script, network, tmp_path):
    ours = planning.learner(*TINY, *NETWORKS[network])
    planning.stir(ours)
    told = libraries.planning(ours)[1]
    torch.save(told, tmp_path / "plan.pt")
    with torch.no_grad():
        found = script.loop(script.ready(str(tmp_path / "plan.pt")))
    # where noise is predicted, the first step divides by a signal of less than a hundredth, and rounding with it
    assert (found - told["plan"]).abs().max() < (1e-4 if told["parametrization"] == "x0" else 2e-3)
    assert told["plan"][:, ours.config.history + 1 :].std() > 0.01


def test_rows_say_which_libraries_are_missing(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda name: False)
    monkeypatch.setattr(libraries, "MODELS", ("default",))
    monkeypatch.setattr(libraries, "ROUNDS", 1)
    monkeypatch.setattr(libraries, "UPDATES", 2)
    rows = list(libraries.rows())
    assert [row["name"].split(" / ")[1] for row in rows] == ["diffusers", "d3rlpy"]
    assert all(row["peer"] == "not installed" and row["ours"] > 0 for row in rows)
    speed.show(rows[0])


def test_transitions_are_the_steps_of_the_episodes_in_order():
    store = planning.random_episodes()
    found, start = libraries.transitions(store), 0
    assert {len(values) for values in found.values()} == {store.transitions}
    ends = (found["terminals"] + found["timeouts"]).nonzero()[0] + 1
    assert ends.tolist() == store.lengths.cumsum(0).tolist() and not found["terminals"].any()
    for episode, end in enumerate(ends):
        observed = store.observations[start + episode : end + episode, 0]
        assert torch.equal(torch.as_tensor(found["observations"][start:end]), observed)
        start = end
