"""Points pushed to goals (tests/policies/reach.py): paid after four steps, so that only who looks ahead learns.

The data of random actions get about 0.2, the best actions 1: three quarters of that gap must be won.
"""

import pytest

from tests.learn.training import learnt
from tests.policies import reach

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
BEST = 1.0
SMALL = {"width": 64, "batch_size": 64}
QUICK = {"target_rate": 0.02, "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
"""The papers' constants are for a million updates."""


@pytest.fixture(scope="module")
def anything():
    return reach.data(episodes=1000)


def enough(anything):
    chance = float(anything.team_returns().mean())
    assert chance < 0.4
    return chance + 0.75 * (BEST - chance)


@pytest.mark.parametrize(("algo", "updates", "options"), [
    ("rebrac", 1000, {"target_rate": 0.02, "actor_weight": 0.02}),
    ("iql", 700, {"target_rate": 0.02, "learning_rate": 2e-3, "temperature": 10.0}),
    ("td3-bc", 500, {**QUICK, "alpha": 10.0}),
    ("cql", 500, QUICK),
    ("cpql", 400, {"candidates": 1}),
    ("fql", 700, {"alpha": 0.1, "actor_learning_rate": 2e-3, "critic_learning_rate": 3e-3}),
])  # fmt: skip
def test_random_data_hold_the_way_to_the_goal(anything, algo, updates, options):
    """The policies are judged themselves: nothing chooses among their actions."""
    learner = learnt(algo, reach.Reach(1).spec, anything, updates, **SMALL, **options)
    assert reach.mean_return(learner.policy()) >= enough(anything)


def test_dipo_learns_from_its_own_experience(anything):
    options = {**SMALL, "act_every": 2, "action_steps": 10, "action_rate": 0.06}
    learner = learnt("dipo", reach.Reach(1).spec, reach.data(episodes=20), 400, enter=reach.Reach, **options)
    assert reach.mean_return(learner.policy()) >= enough(anything)


def test_polygrad_learns_from_imagined_futures(anything):
    options = {
        "width": 32, "heads": 2, "horizon": 4, "learning_rate": 3e-3, "diffusion_steps": 50, "sampler_steps": 5,
        "actor_width": 64, "actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "warmup": 200, "futures": 64,
        "imagine_every": 1,
    }  # fmt: skip
    learner = learnt("polygrad", reach.Reach(1).spec, reach.data(episodes=50), 500, enter=reach.Reach, **options)
    assert reach.mean_return(learner.policy()) >= enough(anything)
