"""Each learner must learn on good 3m data: the bars are fixed shares of the data's own mean return.

The data's mean is about 16.5 of 20. A random policy reaches about 2; acting on another battle's plan about 11.
"""

import pytest
import torch

from madiff import build, collection
from madiff.experiment.rollout import evaluate
from tests.learn.training import learnt

pytestmark = pytest.mark.learn
BATTLES = 300


@pytest.fixture(scope="module")
def problem():
    return build.make_problem({"name": "smac-like"}, None, "3m", torch.device("cpu"))


@pytest.fixture(scope="module")
def good(problem):
    return collection.collect("smac-like", problem.options, "good", 2000, seed=0, progress=False)


def train(algo, problem, store, steps, **options):
    return learnt(algo, problem.spec, store, steps, **options).policy()


def mean_return(problem, policy):
    return float(evaluate(problem.make, policy, BATTLES, seed=1).returns.mean())


def test_the_data_is_what_it_says(good):
    assert 15.5 <= float(good.team_returns().mean()) <= 17.5


@pytest.mark.parametrize("options", [{}, {"recurrent": True, "batch_size": 640}])
def test_bc_reaches_its_data(problem, good, options):
    policy = train("bc", problem, good, 2500, **options)
    assert mean_return(problem, policy) >= float(good.team_returns().mean()) - 0.5


@pytest.mark.long
@pytest.mark.parametrize("algo", ["madiff-d", "madiff-c"])
def test_madiff_reaches_its_data_and_needs_its_plan(problem, good, algo):
    policy = train(algo, problem, good, build.method(algo).defaults["steps"])
    reached = mean_return(problem, policy)
    assert reached >= 0.95 * float(good.team_returns().mean())
    policy.config.plan_ablation = "shuffled"
    assert mean_return(problem, policy) <= 0.6 * reached
