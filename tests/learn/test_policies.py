"""Diffusion policies and independent actor-critics learn: more than random play, and more than poor data."""

import pytest
import torch

from madiff import build, collection
from tests.learn.test_smac_like import mean_return, problem, train  # noqa: F401  (a fixture)

pytestmark = pytest.mark.learn


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def spread():
    return build.make_problem({"name": "particle"}, None, "spread", torch.device("cpu"))


@pytest.fixture(scope="module")
def medium(spread):
    return collection.collect("particle", spread.options, "medium", 2000, seed=0, progress=False)


@pytest.mark.parametrize("algo", ["ma-td3-bc", "ma-cql", "omar"])
def test_actor_critics_learn_to_spread(spread, medium, algo):
    """Random play gets 160, the data 280."""
    assert mean_return(spread, train(algo, spread, medium, 2000)) >= 220


def test_dom2_is_better_than_poor_data(problem):  # noqa: F811
    """The data get 4.5 of 20."""
    poor = collection.collect("smac-like", problem.options, "poor", 2000, seed=0, progress=False)
    assert mean_return(problem, train("dom2", problem, poor, 1500)) >= 9
