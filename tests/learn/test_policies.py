"""Diffusion policies and independent actor-critics learn to act better than most of their data."""

import pytest
import torch

from madiff import build, collection
from tests.learn.test_smac_like import mean_return, train

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def spread():
    return build.make_problem({"name": "particle"}, None, "spread", torch.device("cpu"))


@pytest.fixture(scope="module")
def mixed(spread):
    """Half an expert's, half of medium skill: 403 on average; the expert alone gets 528, behaviour cloning 374."""
    return collection.collect("particle", spread.options, "expert+medium", 2000, seed=0, progress=False)


@pytest.mark.parametrize("algo", ["ma-td3-bc", "ma-cql", "omar", "dom2"])
def test_methods_with_a_value_do_better_than_mixed_data(spread, mixed, algo):
    assert mean_return(spread, train(algo, spread, mixed, 4000)) >= 440


def test_dom2_finds_the_good_in_poor_battles():
    """The data get 7 of 20, behaviour cloning 16."""
    battles = build.make_problem({"name": "smac-like"}, None, "2s3z", torch.device("cpu"))
    poor = collection.collect("smac-like", battles.options, "poor", 2000, seed=0, progress=False)
    assert mean_return(battles, train("dom2", battles, poor, 4000)) >= 18
