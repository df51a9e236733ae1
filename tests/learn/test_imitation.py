"""Policies that clone do what they are told or shown (tests/policies/reach.py): points pushed to goals in four steps.

Random actions get about 0.2, the best ones 1, an expert with little noise 0.96.
"""

import pytest

from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec
from tests.learn.training import learnt
from tests.policies import reach

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
SMALL = {"width": 64, "batch_size": 64}
TRANSFORMER = {"width": 32, "batch_size": 64, "layers": 2}
SPEC = reach.Reach(1).spec


@pytest.fixture(scope="module")
def expert():
    return reach.data(noise=0.1, episodes=500)


@pytest.mark.parametrize("options", [SMALL, {**TRANSFORMER, "network": "transformer"}])
def test_diffusion_clones_an_expert(expert, options):
    learner = learnt("diffusion-bc", SPEC, expert, 500, **options)
    assert reach.mean_return(learner.policy()) >= float(expert.team_returns().mean()) - 0.05


def test_assistance_mends_a_clumsy_hand(expert):
    """Half of the user's actions are random; at least half of what that costs is made good."""
    learner = learnt("shared-autonomy", SPEC, expert, 500, **SMALL, noise=0.5)
    returns = {}
    for gamma in (0.0, 0.6):
        learner.config.gamma = gamma
        returns[gamma] = reach.mean_return(learner.policy())
    assert returns[0.6] >= (returns[0.0] + float(expert.team_returns().mean())) / 2 > returns[0.0] + 0.05


def test_a_decision_transformer_gets_the_return_it_asks_for():
    """Half of the data is an expert's, half random: the mean is 0.6, the range of what can be asked for -1.5 to 1."""
    mixed = EpisodeStore.concatenate([reach.data(episodes=500), reach.data(noise=0.1, episodes=500)])
    learner = learnt("dt", SPEC, mixed, 600, **TRANSFORMER, learning_rate=1e-3, context=4)
    returns = {}
    for share in (0.5, 1.0):
        learner.config.target_return = share
        returns[share] = reach.mean_return(learner.policy())
    assert returns[1.0] >= 0.9 and returns[0.5] <= 0.2


class Hidden(reach.Reach):
    """The goal cannot be seen."""

    def __init__(self, copies):
        super().__init__(copies)
        self.spec = EnvironmentSpec("hidden", "hidden", 1, 2, 1, False, 0, reach.STEPS)

    def _time_step(self, rewards):
        step = super()._time_step(rewards)
        return step._replace(observations=step.observations[..., [0, 2]])


def last_places(policy, copies=300):
    env = Hidden(copies)
    step = env.reset(5)
    policy.reset(seed=0, n=copies)
    for _ in range(reach.STEPS):
        step = env.step(policy.act(step.observations, None))
    return step.observations[:, 0, 0]


def test_beso_goes_where_it_is_told():
    """Learnt in hindsight from an expert whose goals are not in the data; without a goal it ends anywhere."""
    seen = reach.data(noise=0.3, episodes=1000)
    store = EpisodeStore(**{**seen.tensors, "observations": seen.observations[..., [0, 2]]})
    learner = learnt("beso", Hidden(1).spec, store, 500, **TRANSFORMER, history=1)
    for goal in (0.6, -0.4):
        learner.config.goal = (goal, 0.0)
        assert float((last_places(learner.policy()) - goal).abs().mean()) < 0.15
    learner.config.guidance = 0.0
    assert float((last_places(learner.policy()) + 0.4).abs().mean()) > 0.3
