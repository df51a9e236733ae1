"""Damage, reloading, healing and splash in cases worked out by hand."""

import pytest
import torch

from envs.smac_like import SmacLike

STOP, ATTACK = 1, 6


def test_marine_fires_once_and_reloads(arrange):
    env = arrange("3m", [(10, 16), (1, 9), (1, 23), (15.5, 16), (31, 9), (31, 23)])
    step = env.step(torch.tensor([[ATTACK, STOP, STOP]]))
    assert env.state["health"][0].tolist() == [39, 45, 45, 39, 45, 45]
    assert step.rewards[0].tolist() == pytest.approx([6 * 20 / 365] * 3)
    # 13.66 loops with -1 to +2 of noise, eight loops ticked.
    assert 13.66 - 1 - 8 < env.state["cooldown"][0, 0] < 13.67 + 2 - 8
    env.step(torch.tensor([[ATTACK, STOP, STOP]]))
    assert env.state["health"][0, 3] in (39, 33)
    env.step(torch.tensor([[ATTACK, STOP, STOP]]))
    assert env.state["health"][0, 3] == 33


@pytest.mark.parametrize(("scenario", "loops"), [("3m", 13.664), ("2s3z", 30.016)])
def test_mean_time_between_shots(arrange, scenario, loops):
    """Shots come every cooldown + U(-1, 2) loops, rounded up to whole loops: half a loop more twice over."""
    n = {"3m": 3, "2s3z": 5}[scenario]
    places = [(10, 16)] + [(1, 9 + i) for i in range(n - 1)] + [(15.5, 16)] + [(31, 9 + i) for i in range(n - 1)]
    env = arrange(scenario, places, copies=64)
    env.rules.speed.zero_()
    fired = torch.zeros(64)
    for _ in range(150):
        state = env.state
        state["health"] = env.rules.health[:, 0].expand(64, -1).clone()
        state["shield"] = env.rules.shield[:, 0].expand(64, -1).clone()
        state["elapsed"] = torch.zeros_like(state["elapsed"])
        env.set_state(state)
        env.step(torch.tensor([[ATTACK] + [STOP] * (n - 1)]).expand(64, -1))
        fired += env.state["shots"][:, 0] != 0
    # The first shot comes at once, and half an interval is left over at the end.
    assert 1200 / (fired.mean() - 0.5) == pytest.approx(loops + 1.0, rel=0.01)


def volley_on(env, shooters, target, health, shield=None):
    """One volley of the allies at one enemy through the library's function."""
    from envs.smac_like.dynamics import where_standing
    from envs.smac_like.volley import volley

    n, m = env.rules.allies, env.rules.enemies
    shooting = torch.zeros(n, 1, dtype=torch.bool)
    shooting[shooters] = True
    points = torch.tensor([0.0] * m if shield is None else shield)[:, None]
    standing = where_standing(env.rules, env._battle)
    aims = torch.full((n, 1), n + target)
    after = volley(
        env.rules, env.rules.sides[0], shooting, aims, standing, torch.tensor(health).float()[:, None], points
    )
    return [tensor.T for tensor in after]


TWO_SIDES = [(10, 16)] * 5 + [(14, 16)] * 5


def test_shield_takes_the_blow_first(arrange):
    env = arrange("2s3z", TWO_SIDES)
    # A stalker (13, +5 against armored) on a stalker: 18 from the shield.
    _, health, shield = volley_on(env, [0], 0, [80, 80, 100, 100, 100], [80, 80, 50, 50, 50])
    assert (health[0, 0], shield[0, 0]) == (80, 62)
    # Shield 5 left: 13 come through, armour takes 1.
    _, health, shield = volley_on(env, [0], 0, [80, 80, 100, 100, 100], [5, 80, 50, 50, 50])
    assert (health[0, 0], shield[0, 0]) == (68, 0)
    # No bonus on a light zealot: 13 - 1.
    _, health, _ = volley_on(env, [1], 2, [80, 80, 100, 100, 100], [0.0] * 5)
    assert health[0, 2] == 88


def test_two_blows_each_meet_armour(arrange):
    env = arrange("2s3z", TWO_SIDES)
    _, health, shield = volley_on(env, [2], 2, [80, 80, 100, 100, 100], [80, 80, 0, 50, 50])
    assert (health[0, 2], shield[0, 2]) == (100 - 2 * (8 - 1), 0)
    _, health, shield = volley_on(env, [2], 2, [80, 80, 100, 100, 100], [80, 80, 8, 50, 50])
    assert (health[0, 2], shield[0, 2]) == (100 - 7, 0)
    _, health, shield = volley_on(env, [2], 2, [80, 80, 100, 100, 100], [80, 80, 7.75, 50, 50])
    assert health[0, 2] == 100 - 0.5 - 7  # a quarter comes through: half a point at least
    # Two zealots: the second finds the shield where the first left it, 20 - 16.
    _, health, shield = volley_on(env, [2, 3], 2, [80, 80, 100, 100, 100], [80, 80, 20, 50, 50])
    assert (health[0, 2], shield[0, 2]) == (100 - 3 - 7, 0)


def test_bonus_and_armour_of_marauders(arrange):
    env = arrange("MMM2", [(10, 16)] * 10 + [(14, 16)] * 12)
    _, health, _ = volley_on(env, [0], 0, [125] * 3 + [45] * 8 + [150])
    assert health[0, 0] == 125 - 19
    _, health, _ = volley_on(env, [0, 2], 3, [125] * 3 + [45] * 8 + [150])
    assert health[0, 3] == 45 - 10 - 6
    _, health, _ = volley_on(env, [0, 2], 11, [125] * 3 + [45] * 8 + [150])
    assert health[0, 11] == 150 - 5  # marauders cannot reach into the air


def test_nobody_shoots_at_the_fallen(arrange):
    env = arrange("3m", [(10, 16)] * 3 + [(14, 16)] * 3)
    fires, health, _ = volley_on(env, [0, 1, 2], 1, [45, 7, 45])
    assert fires[0].tolist() == [True, True, False]
    assert health[0].tolist() == [45, 0, 45]


def test_no_two_kill_each_other_in_one_loop(arrange):
    env = arrange({"agents": 1}, [(10, 16), (15, 16)], copies=32, health=[6, 6])
    step = env.step(torch.full((32, 1), ATTACK))
    # Both are ready at the first loop, which belongs to the allies.
    assert step.info["won"].all()
    assert env.state["health"].tolist() == [[6, 0]] * 32
    assert step.rewards[:, 0].tolist() == pytest.approx([(6 + 10 + 200) * 20 / 255] * 32)


def test_medivac_heals_and_tires(arrange):
    places = [(10, 16), (1, 9)] + [(1.0 + i, 22) for i in range(7)] + [(10, 18)] + [(31, 9 + i) for i in range(10)]
    env = arrange("MMM", places, health=[50, 125] + [45] * 7 + [150, 125, 125] + [45] * 7 + [150])
    env.step(torch.tensor([[STOP] * 9 + [ATTACK]]))
    assert env.state["health"][0, 0] == pytest.approx(50 + 8 * 0.5625)
    assert env.state["energy"][0, 9] == pytest.approx(50 + 8 * (0.0352 - 0.1875), abs=1e-4)


def test_healing_stops_without_energy_and_at_full_health(arrange):
    places = [(10, 16), (1, 9)] + [(1.0 + i, 22) for i in range(7)] + [(10, 18)] + [(31, 9 + i) for i in range(10)]
    health = [124.5, 125] + [45] * 7 + [150, 125, 125] + [45] * 7 + [150]
    env = arrange("MMM", places, health=health)
    env.step(torch.tensor([[STOP] * 9 + [ATTACK]]))
    assert env.state["health"][0, 0] == 125
    env = arrange("MMM", places, health=[50] + health[1:], energy=[0.0] * 20)
    env.step(torch.tensor([[STOP] * 9 + [ATTACK]]))
    assert env.state["health"][0, 0] < 50 + 8 * 3 * 0.0352 + 1e-4


def test_shields_return_after_ten_seconds(arrange):
    places = [(1, 9 + i) for i in range(5)] + [(31, 9 + i) for i in range(5)]
    row = [40.0] * 10
    env = arrange("2s3z", places, shield=row, calm=[100.0] * 10)
    env.step(torch.full((1, 5), STOP))
    assert env.state["shield"][0].tolist() == row
    env = arrange("2s3z", places, shield=row, calm=[160.0] * 10)
    env.step(torch.full((1, 5), STOP))
    assert env.state["shield"][0].tolist() == [40 + 8 * 0.125] * 10


def test_zerg_heal_themselves(arrange):
    places = [(1, 9 + i) for i in range(6)] + [(31, 9 + i) for i in range(8)]
    env = arrange("6h_vs_8z", places, health=[70] * 6 + [50] * 8)
    env.step(torch.full((1, 6), STOP))
    assert env.state["health"][0, 0] == pytest.approx(70 + 8 * 0.38 / 22.4)
    assert env.state["health"][0, 6] == 50


def test_colossus_sweeps_a_line(arrange):
    # Fire along x: the line lies along y through the target, 1.4 either way and 0.15 deep, reckoned to edges (0.375).
    enemies = [(16, 16), (16, 17.7), (16, 17.8), (16.5, 16), (16.55, 15.5)] + [(30, 20)] * 59
    env = arrange("2c_vs_64zg", [(10, 16), (10, 20)] + enemies)
    _, health, _ = volley_on(env, [0], 0, [35] * 64)
    assert health[0, :5].tolist() == [5, 5, 35, 5, 35]
    assert (health[0, 5:] == 35).all()


def test_baneling_bursts_and_dies(arrange):
    allies = [(10, 16), (10, 17), (12.8, 16), (10, 11)] + [(1, 9 + i) for i in range(3)]
    enemies = [(10.5, 16)] + [(31, 9 + 0.3 * i) for i in range(31)]
    env = arrange("so_many_baneling", allies + enemies, shield=[50, 20] + [50] * 5 + [0] * 32)
    step = env.step(torch.full((1, 7), STOP))
    # 16 + 19 against light zealots, reach 2.2 + 0.5 from (10.5, 16); a burst baneling counts as a kill.
    assert env.state["health"][0, :4].tolist() == [100, 100 - 14, 100, 100]
    assert env.state["shield"][0, :4].tolist() == [15, 0, 15, 50]
    assert env.state["health"][0, 7] == 0
    assert step.rewards[0, 0] == pytest.approx((30 + 10) * 20 / 1480)


def test_overlapping_units_part(arrange):
    env = arrange("3m", [(10, 16), (10.3, 16), (1, 9), (31, 9), (31, 12), (31, 15)])
    env.step(torch.full((1, 3), STOP))
    x = env.state["position"][0, 0]
    assert x[1] - x[0] == pytest.approx(0.75, abs=1e-3)
    assert x[1] + x[0] == pytest.approx(20.3, abs=1e-3)


def test_walking_speed_and_edges(arrange):
    env = arrange("3m", [(10, 16), (31.9, 16), (10, 23.5), (1, 9), (1, 12), (1, 15)])
    env.step(torch.tensor([[4, 4, 2]]))
    x, y = env.state["position"][0]
    assert x[0] == pytest.approx(10 + 8 * 3.15 / 22.4, abs=1e-4)
    assert x[1] == 31.9 and y[2] == 23.5  # not legal so near the edge: stop


def test_attackers_walk_into_range_and_no_further(arrange):
    env = arrange("3m", [(10, 16), (1, 9), (1, 23), (15.95, 16), (31, 9), (31, 23)])
    env.rules.speed[3:] = 0
    env.step(torch.tensor([[ATTACK, STOP, STOP]]))
    distance = env.state["position"][0, 0, 3] - env.state["position"][0, 0, 0]
    assert 5.73 < distance <= 5.75
    assert env.state["health"][0, 3] == 39


def test_enemies_keep_a_target_in_range_and_prefer_healers(arrange):
    env = arrange("3m", [(10, 16), (12, 16), (1, 9), (15, 16), (31, 9), (31, 23)], target=[0, 1, 2, 0, 4, 5])
    env.step(torch.full((1, 3), STOP))
    assert env.state["target"][0, 3] == 0  # though ally 1 is nearer
    env = arrange("3m", [(9, 16), (12, 16), (1, 9), (15, 16), (31, 9), (31, 23)], target=[0, 1, 2, 0, 4, 5])
    env.step(torch.full((1, 3), STOP))
    assert env.state["target"][0, 3] == 1  # ally 0 left its range and does not shoot back
    places = [(10, 16), (11, 9)] + [(10, 12.0 + i) for i in range(7)] + [(9, 16)] + [(14, 16)] * 2 + [(14.5, 16)] * 8
    env = arrange("MMM", places)
    env.step(torch.full((1, 10), STOP))
    assert (env.state["target"][0, 12:19] == 9).all()  # marines go for the medivac
    assert (env.state["target"][0, 10:12] == 0).all()  # marauders cannot


def test_a_weapon_that_cannot_reach_the_air_does_not_fire_at_a_medivac():
    env = SmacLike(1, scenario="MMM")
    env.reset(0)
    names = [unit.name for unit in env.scenario.ally_units]
    marauder, n = names.index("marauder"), len(names)
    medivac = [unit.name for unit in env.scenario.enemy_units].index("medivac")
    state = env.state
    state["position"][0, :, marauder] = torch.tensor([10.0, 12.0])
    state["position"][0, :, n + medivac] = torch.tensor([13.0, 12.0])
    env.set_state(state)
    actions = torch.ones(1, n, dtype=torch.long)
    actions[0, marauder] = 6 + medivac
    env.step(actions)
    assert env.state["health"][0, n + medivac] == 150 and env.state["cooldown"][0, marauder] == 0
