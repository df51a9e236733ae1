"""Made data obey the task they were learnt from, and teach what the real ones do (tests/policies/reach.py).

A step of reach: the place moves by half the action, the goal stays, a quarter of the time goes by; the last step pays
1 less the distance and ends. The data of random actions get about 0.2, the best actions 1.
"""

import pytest
import torch

from madiff.data.replay import single_steps
from tests.learn.training import learnt
from tests.policies import reach

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
LEARNER = {"width": 64, "batch_size": 64, "target_rate": 0.02, "learning_rate": 2e-3, "temperature": 10.0}


def synthesizer_of(algo, store, updates, **options):
    return learnt(algo, reach.Reach(1).spec, store, updates, **options)


def broken_rules(rows):
    """Root mean square errors of place, goal, time and reward, and the share of wrong endings."""
    seen, following = rows["observations"][:, 0], rows["next_observations"][:, 0]
    place = seen[:, 0] + reach.STRIDE * rows["actions"][:, 0, 0]
    left = seen[:, 2] - 1 / reach.STEPS
    ends = left < 0.5 / reach.STEPS
    paid = torch.where(ends, 1 - (following[:, 0] - seen[:, 1]).abs(), 0.0)
    expected = torch.stack([place, seen[:, 1], left, paid], dim=1)
    errors = expected - torch.cat([following, rows["rewards"]], dim=1)
    return errors.square().mean(0).sqrt().tolist(), float((ends != rows["terminated"]).float().mean())


@pytest.fixture(scope="module")
def synthesizer():
    options = {"width": 128, "layers": 2, "batch_size": 128, "synthesizer_steps": 1500, "ema_decay": 0.99}
    options |= {"transitions": 6000, "synthetic_share": 1.0}
    return synthesizer_of("synther", reach.data(episodes=1000), 2100, learner="iql", options=LEARNER, **options)


def test_made_steps_obey_the_rules_of_the_task(synthesizer):
    rows = synthesizer.draw(2000, torch.Generator().manual_seed(1))
    errors, wrong = broken_rules(rows)
    untrained = synthesizer_of("synther", reach.data(episodes=50), 1, width=128, layers=2)
    spoilt, _ = broken_rules(untrained.draw(2000, torch.Generator().manual_seed(1)))
    assert max(errors) < 0.15 and wrong < 0.02
    assert min(spoilt) > 0.25


def test_a_learner_finds_the_way_from_made_steps_alone(synthesizer):
    chance = float(reach.data(episodes=1000).team_returns().mean())
    assert chance < 0.4
    assert reach.mean_return(synthesizer.policy()) >= chance + 0.75 * (1 - chance)


def test_bridges_obey_the_rules_and_teach_beside_the_data():
    """From steps of little return to ones of much: a bridge ends before the last step, so none of its steps pays."""
    options = {"horizon": 4, "width": 32, "model_width": 64, "batch_size": 64, "ema_decay": 0.99, "good_share": 0.05}
    options |= {"layers": 1, "synthesizer_steps": 700, "bridges": 1024, "goals": 256}
    options |= {"learning_rate": 3e-3, "deviation": 0.15}
    found = synthesizer_of("diffstitch", reach.data(episodes=1000), 1300, learner="iql", options=LEARNER, **options)
    made = found.synthetic
    errors, _ = broken_rules(single_steps(made))
    assert made.episodes >= 100 and float(made.lengths.double().mean()) > 1.2
    assert max(errors) < 0.15
    chance = float(reach.data(episodes=1000).team_returns().mean())
    assert reach.mean_return(found.policy()) >= chance + 0.75 * (1 - chance)
