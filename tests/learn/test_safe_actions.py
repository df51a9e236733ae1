"""A policy trained through the layer of safe actions gives up less than the same policy projected afterwards.

One step o' = o + a / 2 that pays -d'Md, d = a - BEST with a strong tie between the two directions, and a wall x' <= 0.
The nearest safe action to the best one leaves a_y where it was; the best safe one moves a_y along the tie, for a tenth
of the loss. Both are known: projected afterwards a policy can get (a_x - 0.8)^2 less, trained through 0.0975 of that.
"""

import pytest
import torch
import yaml

from madiff import build, guarding
from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec
from tests.learn.training import CPU, taught

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
SPEC = EnvironmentSpec("toy", "toy", 1, 2, 2, False, 0, 1, observation_names=("x", "y"))
BEST, TIE = torch.tensor([0.8, -0.6]), torch.tensor([[1.0, 0.95], [0.95, 1.0]])
WALL = {"sets": [{"type": "half-space", "dimensions": ["x"], "normal": [1], "offset": 0.0}]}
SMALL = {"width": 48, "batch_size": 64, "value_batch": 64, "conservative_weight": 0.0, "thresholds": (),
         "q_weight": 5.0, "ema_start": 0, "ema_decay": 0.98, "normalizer": "limits"}  # fmt: skip


def starts(count, seed):
    """Places (count, 1, 2) from which the best action always leads through the wall."""
    low, high = torch.tensor([-0.2, -1.0]), torch.tensor([0.4, 1.0])
    return low + (high - low) * torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(seed))


def paid(actions):
    missed = actions - BEST
    return -torch.einsum("...i,ij,...j->...", missed, TIE, missed)


@pytest.fixture(scope="module")
def data():
    """Random actions."""
    seen, n = starts(4000, 0), 4000
    actions = 2 * torch.rand(n, 1, 2, generator=torch.Generator().manual_seed(1)) - 1
    return EpisodeStore(
        observations=torch.stack([seen, seen + actions / 2], 1).flatten(0, 1), actions=actions, rewards=paid(actions),
        costs=torch.zeros(n, 1), terminated=torch.ones(n, dtype=torch.bool), truncated=torch.zeros(n, dtype=torch.bool),
        lengths=torch.ones(n, dtype=torch.int64),
    )  # fmt: skip


def learnt(store, section, steps=400):
    learner = build.make_learner({"name": "dom2", **SMALL}, SPEC, CPU, seed=0)
    source = learner.batches(store)
    guarding.put(learner, section, SPEC)
    return taught(learner, source, steps)


def played(learner, section):
    """Mean pay, and the share of steps that end behind the wall."""
    guarding.put(learner, section, SPEC)
    policy, seen = learner.policy(), starts(1000, 2)
    policy.reset(seed=3, n=1000)
    actions = policy.act(seen, None).clamp(-1, 1)
    return float(paid(actions).mean()), float(((seen + actions / 2)[..., 0] > 1e-4).float().mean())


def test_training_through_the_layer_beats_projecting_afterwards(data, tmp_path):
    (tmp_path / "wall.yaml").write_text(yaml.safe_dump(WALL))
    layer = {"name": "actions", "constraints": str(tmp_path / "wall.yaml"), "gamma": 1.0, "margin": 0.0}
    none = {"name": "none"}
    bare, through = learnt(data, none), learnt(data, layer)
    unprotected, afterwards, trained = played(bare, none), played(bare, layer), played(through, layer)
    assert unprotected[0] > -0.2 and unprotected[1] > 0.8
    assert afterwards[0] < -0.7 and afterwards[1] == 0
    assert trained[0] > -0.2 and trained[1] == 0
