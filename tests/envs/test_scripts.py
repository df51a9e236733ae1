"""Scripted policies: legal, better with skill, ordered as their names promise, and calibrated."""

import pytest
import torch

import envs
from envs.smac_like import SmacLike
from envs.smac_like.calibrate import play
from envs.smac_like.calibration import LEVELS
from envs.smac_like.mixtures import QUALITIES
from envs.smac_like.scenarios import SCENARIOS
from envs.smac_like.scripts import Player, Scripted
from madiff.interfaces import UserError


def mean_return(env, script, skill=1.0):
    return play(env, Scripted(env.scenario, [Player(script, skill, skill)]), seed=0).mean().item()


@pytest.mark.parametrize(("name", "margin"), [("3m", 3.0), ("2s3z", 3.0)])
def test_kite_beats_attack_nearest_beats_random(name, margin):
    env = SmacLike(300, scenario=name)
    kite, nearest, noise = (mean_return(env, script) for script in ("kite", "attack-nearest", "random"))
    assert kite > nearest + margin and nearest > noise + margin
    assert kite > 19


def test_focus_fire_beats_attack_nearest():
    env = SmacLike(300)
    assert mean_return(env, "focus-fire") > mean_return(env, "attack-nearest") + 2


def test_skill_pays():
    env = SmacLike(300)
    returns = [mean_return(env, "kite", skill) for skill in (0.0, 0.6, 0.8, 1.0)]
    assert all(better > worse + 1 for worse, better in zip(returns, returns[1:], strict=False))


@pytest.mark.parametrize("name", SCENARIOS)
def test_only_legal_actions(name):
    env = SmacLike(3, scenario=name, strict=True)
    step, policy = env.reset(0), envs.behaviour(env, "replay")
    policy.reset(0, 3)
    for _ in range(12):
        step = env.step(policy.act(step.observations, step.available_actions))
    assert step.info["illegal_actions"].sum() == 0


def test_the_seed_fixes_the_play():
    env = SmacLike(32)
    policy = envs.behaviour(env, "medium")
    assert torch.equal(play(env, policy, 1), play(env, policy, 1))
    assert not torch.equal(play(env, policy, 1), play(env, policy, 2))


@pytest.mark.parametrize(("quality", "target"), [("good", 16.5), ("medium", 10.0), ("poor", 4.7)])
def test_qualities_of_3m(quality, target):
    """OG-MARL's mean returns within one point, with 1,000 battles of other seeds than those calibrated on."""
    env = SmacLike(1000)
    assert play(env, envs.behaviour(env, quality), 77).mean().item() == pytest.approx(target, abs=0.8)


def test_expert_and_random_bracket_the_qualities():
    env = SmacLike(300)
    returns = {quality: play(env, envs.behaviour(env, quality), 5).mean().item() for quality in QUALITIES}
    assert returns["expert"] > returns["good"] > returns["medium"] > returns["poor"] > returns["random"]
    assert returns["poor"] < returns["replay"] < returns["good"]


def test_every_scenario_is_calibrated():
    assert set(LEVELS) == set(SCENARIOS)


def test_user_errors():
    with pytest.raises(UserError, match="allowed: random, attack-nearest, focus-fire, kite"):
        Scripted(SCENARIOS["3m"], [Player("rush", 1, 1)])
    policy = Scripted(SCENARIOS["3m"], [Player("kite", 1, 1)])
    policy.reset(0, 1)
    with pytest.raises(UserError, match="masks"):
        policy.act(torch.zeros(1, 3, 30), None)
