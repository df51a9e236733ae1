"""Coordination: a team that plans together, or with common noise, wins games that independent imitators cannot.

xor pays 1 for coordination in every round; each agent sampling its own share of the data gets 0.5, greedy imitation 0.
"""

import pytest
import torch

from madiff import build, collection
from madiff.experiment.rollout import evaluate
from tests.learn.test_smac_like import train

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
SMALL = {"width": 64, "layers": 2, "inverse_width": 128, "history": 1, "learning_rate": 2e-3}
UPDATES, GAMES = 1000, 300


@pytest.fixture(scope="module")
def xor():
    return build.make_problem({"name": "xor"}, None, None, torch.device("cpu"))


@pytest.fixture(scope="module")
def good(xor):
    return collection.collect("xor", xor.options, "good", 1000, seed=0, progress=False)


def won(problem, policy):
    return float(evaluate(problem.make, policy, GAMES, seed=1).returns.mean())


def test_one_plan_for_the_team_coordinates(xor, good):
    assert won(xor, train("madiff-c", xor, good, UPDATES, **SMALL)) >= 0.9


def test_without_attention_among_agents_it_does_not(xor, good):
    assert won(xor, train("madiff-c", xor, good, UPDATES, agent_attention=False, **SMALL)) <= 0.65


def test_agents_that_plan_alone_coordinate_by_common_noise_only(xor, good):
    policy = train("madiff-d", xor, good, UPDATES, **SMALL)
    assert won(xor, policy) >= 0.9
    policy.config.common_noise = False
    assert won(xor, policy) <= 0.75


def test_a_critic_chooses_among_the_plans_of_random_play(xor):
    """Random play wins 4 of 9 rounds; the best of eight sampled plans should win nearly all."""
    random = collection.collect("xor", xor.options, "random", 1000, seed=0, progress=False)
    policy = train("madiff-c", xor, random, UPDATES, candidates=8, temperature=1.0, **SMALL)
    assert won(xor, policy) >= 0.9


@pytest.fixture(scope="module")
def landmarks():
    """A team of demonstrators gets 631; each agent drawing its own share of it 495, its most likely action 400."""
    problem = build.make_problem({"name": "particle"}, None, "multimodal", torch.device("cpu"))
    data = collection.collect("particle", problem.options, "expert", 2000, seed=0, progress=False)
    return problem, data


def test_one_plan_for_the_team_shares_out_the_landmarks(landmarks):
    problem, data = landmarks
    assert won(problem, train("madiff-c", problem, data, 1600, ema_every=2, **SMALL)) >= 590


def test_agents_trained_to_agree_share_out_the_landmarks_apart(landmarks):
    problem, data = landmarks
    policy = train("madiff-d", problem, data, 1600, ema_every=2, agreement=1.0, temperature=0.7, **SMALL)
    together = won(problem, policy)
    policy.config.common_noise = False
    assert together >= 535 and together > won(problem, policy)
