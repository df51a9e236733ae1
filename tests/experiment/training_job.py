"""A small real learner, and the same job as a command: `python training_job.py RUN_DIR STEPS [pause]`."""

import sys
import time
from pathlib import Path

import torch
from torch import nn

from madiff.experiment.loop import FitReport, fit
from madiff.experiment.run_directory import RunDirectory


class Source:
    """Noisy samples of a fixed function."""

    def sample(self, generator):
        x = torch.rand(16, 4, generator=generator)
        return {"x": x, "y": (x * torch.arange(4)).sum(1, keepdim=True)}


class Regression:
    """A two-layer network with Adam, whose update draws noise of its own."""

    def __init__(self, width=32, pause=0.0):
        self.network = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.updates, self.pause = 0, pause

    def batches(self, store):
        return Source()

    def update(self, batch, generator):
        time.sleep(self.pause)
        x = batch["x"] + 0.01 * torch.randn(batch["x"].shape, generator=generator)
        loss = (self.network(x) - batch["y"]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        return {"loss": loss.detach()}

    def policy(self):
        raise AssertionError("training must not act")

    def weights(self):
        return dict(self.network.state_dict())

    def load_weights(self, weights):
        self.network.load_state_dict(weights)

    def training_state(self):
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_training_state(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]


def train(run_dir: Path, steps: int, learner: Regression | None = None, **options) -> FitReport:
    """Train to `steps`, resuming what is there; evaluations are functions of the weights."""
    learner = learner or Regression()

    def evaluate(step):
        return {"return_mean": learner.network(torch.ones(1, 4)).item()}

    settings = {"seed": 3, "log_every": 5, "checkpoint_every": 7, "evaluate_every": 12, "evaluate": evaluate}
    with RunDirectory.open(run_dir, {"lr": 1e-2}, {"algo": "regression"}) as run:
        return fit(learner, Source(), run, steps=steps, **{**settings, **options})


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    report = train(Path(sys.argv[1]), int(sys.argv[2]), Regression(pause=pause))
    print(f"finished from {report.start_step}", flush=True)
