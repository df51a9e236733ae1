"""The shipped players: the returns they make, that they agree where they must, and that their errors last."""

from itertools import permutations

import pytest
import torch

import envs
from envs.particle import Particle, batched
from envs.particle.aims import Agree, Aim, Cover
from envs.particle.behaviours import QUALITIES
from envs.particle.scripts import BLUNDER_STEPS, Level, Script
from madiff.interfaces import UserError

EAST, WEST = torch.tensor([10.0, 0.0]), torch.tensor([-10.0, 0.0])


def episodes(env, policy, seed=0):
    """(copies, agent) returns, and all observations and actions, step by step."""
    step = env.reset(seed)
    policy.reset(seed + 1, env.copies)
    seen, done, total = [step.observations], [], 0.0
    while not step.truncated.all():
        done.append(policy.act(step.observations, None))
        step = env.step(done[-1])
        seen.append(step.observations)
        total = total + step.rewards
    return total, torch.stack(seen), torch.stack(done)


def means(scenario, copies=2000):
    env = Particle(copies, scenario=scenario)
    return {quality: episodes(env, envs.behaviour(env, quality))[0].mean().item() for quality in QUALITIES}


def test_spread_pays_what_omars_data_sets_were_paid():
    mean = means("spread")
    assert abs(mean["expert"] - 531) < 40 and abs(mean["medium"] - 273) < 30
    assert abs(mean["replay"] - 204) < 30 and abs(mean["random"] - 159.6) < 4
    assert mean["medium"] + 60 < mean["good"] < mean["expert"] - 60
    assert mean["random"] + 20 < mean["poor"] < mean["medium"] - 40


@pytest.mark.parametrize("scenario", ["tag", "world", "multimodal"])
def test_qualities_are_ordered(scenario):
    mean = means(scenario, 1000)
    apart = 0.1 * (mean["expert"] - mean["random"])
    for better, worse in (("expert", "good"), ("good", "medium"), ("medium", "poor"), ("medium", "replay")):
        assert mean[better] > mean[worse] + apart
    assert min(mean["poor"], mean["replay"]) > mean["random"] + 0.5 * apart


def test_random_is_uniform():
    env = Particle(500, scenario="tag")
    actions = episodes(env, envs.behaviour(env, "random"))[2]
    assert torch.histc(actions, 20, -1, 1).min() > 0.95 * actions.numel() / 20
    flat = actions.movedim(0, 1).flatten(2)
    assert (flat[:, 1:] * flat[:, :-1]).mean().abs() < 0.01 and (actions[..., 0] * actions[..., 1]).mean().abs() < 0.01


@pytest.mark.parametrize("scenario", ["spread", "tag", "world", "multimodal"])
def test_actions_are_legal_and_repeat_by_seed(scenario):
    env = Particle(64, scenario=scenario)
    for quality in QUALITIES:
        policy = envs.behaviour(env, quality)
        first, again, other = (episodes(env, policy, seed)[2] for seed in (3, 3, 4))
        assert first.abs().max() <= 1 and first.shape == (25, 64, 3, 2)
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_replay_grows_from_random_to_medium():
    env = Particle(2000)
    paid = episodes(env, envs.behaviour(env, "replay"))[0].mean(1)
    fifths = [part.mean().item() for part in paid.chunk(5)]
    assert fifths == sorted(fifths) and abs(fifths[0] - 160) < 20 and fifths[-1] > 245


class EastOrWest:
    """Skilled agents go east, blundering ones west."""

    def reset(self, n, generator):
        self.n = n

    def __call__(self, observations):
        place = EAST.expand(self.n, 3, 2)
        return Aim(place, torch.zeros_like(place))

    def astray(self, observations, draw):
        assert ((draw >= 0) & (draw < 1)).all()
        return WEST.expand(self.n, 3, 2)


def test_blunders_take_their_share_of_time_and_last():
    env = Particle(4000)
    level = Level(0.7, 0.5, 0.0)
    lost = episodes(env, Script(env.scene, EastOrWest(), (level, level)))[2][..., 0] < 0
    share = lost.float().mean((1, 2))
    assert ((share - 0.3).abs() < 0.02).all()  # from the first step to the last
    ending = (lost[:-1] & ~lost[1:]).sum() / lost[:-1].sum()
    assert ending.item() == pytest.approx(1 / BLUNDER_STEPS, abs=0.01)


def test_pace_limits_force_and_thrashing_is_uniform():
    env = Particle(2000)
    level = Level(1.0, 0.4, 0.0)
    actions = episodes(env, Script(env.scene, EastOrWest(), (level, level)))[2]
    assert actions[..., 0].mean().item() == pytest.approx(0.4, abs=0.01)
    half = Level(0.0, 0.4, 0.5)
    actions = episodes(env, Script(env.scene, EastOrWest(), (half, half)))[2][:, :, :, 0]
    assert (actions > 0.6).float().mean().item() == pytest.approx(0.5 * 0.2, abs=0.02)


def test_cover_takes_the_shortest_assignment():
    env = Particle(200, agents=4)
    seen = env.reset(1).observations
    agents, landmarks = env.state["position"].split(4, 1)
    chosen = Cover(4, env.device)(seen).place + agents
    ways = torch.cdist(agents, landmarks)
    shortest = torch.stack([ways[:, range(4), order].sum(1) for order in permutations(range(4))]).amin(0)
    assert torch.allclose((chosen - agents).norm(dim=-1).sum(1), shortest, atol=1e-5)
    assert (torch.cdist(chosen, landmarks).amin(1) < 1e-5).all()  # nobody shares one


def assignments(env, observations):
    """(copies,) number of the permutation by which agents stand nearest to landmarks, -1 where they share one."""
    nearest = observations[..., 4:10].unflatten(-1, (3, 2)).norm(dim=-1).argmin(-1)
    orders = torch.tensor(list(permutations(range(3))))
    same = (nearest[:, None] == orders).all(-1)
    return torch.where(same.any(1), same.int().argmax(1), -1)


def test_multimodal_demonstrators_agree_on_any_assignment():
    env = Particle(3000, scenario="multimodal")
    paid, seen, _ = episodes(env, envs.behaviour(env, "expert"))
    ends = assignments(env, seen[-1])
    assert (ends >= 0).all() and torch.bincount(ends).min() > 420  # 500 expected of each
    assert paid.mean(1).min() > 500  # every episode is good
    at_start = assignments(env, seen[0])
    assert (at_start == ends).float().mean() < 0.35  # where an agent starts does not tell where it goes


def test_multimodal_choices_show_in_the_next_observation():
    env = Particle(1000, scenario="multimodal")
    _, seen, actions = episodes(env, envs.behaviour(env, "expert"))
    assert torch.allclose(seen[1][..., :2], 0.5 * actions[0], atol=0.05)
    landmarks = seen[1][..., 4:10].unflatten(-1, (3, 2))
    along = (landmarks * seen[1][..., None, :2]).sum(-1) / landmarks.norm(dim=-1)
    heading = along.argmax(-1)
    end = seen[-1][..., 4:10].unflatten(-1, (3, 2)).norm(dim=-1).argmin(-1)
    assert (heading == end).float().mean() > 0.9


class Independent(Agree):
    """Every agent draws a landmark of its own."""

    def reset(self, n, generator):
        self.chosen = torch.randint(3, (n, 3), generator=generator)


class Average(Cover):
    """The mean of all landmarks."""

    def __call__(self, observations):
        place = self.landmarks(observations).mean(2)
        return Aim(place, torch.zeros_like(place))


def test_multimodal_cannot_be_followed_alone():
    env = Particle(1000, scenario="multimodal")
    skilled = (Level(1.0, 1.0, 0.0),) * 2
    players = [Script(env.scene, aims(3, env.device), skilled) for aims in (Agree, Independent, Average)]
    agreed, alone, average = (episodes(env, player)[0].mean() for player in players)
    assert alone < 0.75 * agreed and average < 0.35 * agreed


def test_six_agents_have_players_too():
    env = batched(64, agents=6)
    paid = {quality: episodes(env, envs.behaviour(env, quality))[0].mean() for quality in ("expert", "random")}
    assert paid["expert"] > paid["random"] + 100


def test_unknown_qualities_are_refused():
    with pytest.raises(UserError, match="allowed: expert, good, medium, poor, replay, random"):
        envs.behaviour(Particle(1), "great")
