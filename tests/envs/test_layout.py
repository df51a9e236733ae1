"""Sizes and contents of masks, observations and states against SMAC's layout."""

import pytest
import torch

from envs.smac_like import SmacLike
from envs.smac_like.formation import formation
from envs.smac_like.scenarios import SCENARIOS

# Published or worked out by hand: observation, state, actions, R_max, limit.
KNOWN = {
    "3m": (30, 48, 9, 365, 60),
    "8m": (80, 168, 14, 640, 120),
    "5m_vs_6m": (55, 98, 12, 530, 70),
    "2s3z": (80, 120, 11, 1020, 120),
    "3s5z_vs_3s6z": (136, 230, 15, 1670, 170),
    "MMM": (160, 290, 16, 1015, 150),
    "2c_vs_64zg": (332, 342, 70, 3080, 400),
}
MAX_REWARDS = {
    "25m": 1575, "8m_vs_9m": 695, "10m_vs_11m": 805, "27m_vs_30m": 1850, "MMM2": 1205, "3s5z": 1510, "3s_vs_3z": 680,
    "3s_vs_4z": 840, "3s_vs_5z": 1000, "1c3s5z": 1870, "2m_vs_1z": 360, "corridor": 1280, "6h_vs_8z": 1480,
    "2s_vs_1sc": 510, "so_many_baneling": 1480, "bane_vs_bane": 1260,
}  # fmt: skip
PROTOSS = {"stalker", "zealot", "colossus"}
TYPE_BITS = {"2s3z": 2, "3s5z": 2, "3s5z_vs_3s6z": 2, "bane_vs_bane": 2, "MMM": 3, "MMM2": 3, "1c3s5z": 3}


@pytest.mark.parametrize("name", KNOWN)
def test_published_sizes(name):
    env = SmacLike(scenario=name)
    spec = env.spec
    sizes = spec.observation_size, spec.state_size, spec.action_size, env.scenario.max_reward, spec.episode_limit
    assert sizes == KNOWN[name]


@pytest.mark.parametrize("name", SCENARIOS)
def test_sizes_by_smac_formula(name):
    env = SmacLike(2, scenario=name)
    step = env.reset(0)
    n, m = env.spec.agents, len(env.scenario.enemy_units)
    bits = TYPE_BITS.get(name, 0)
    ours = any(unit.name in PROTOSS for unit in env.scenario.ally_units)
    theirs = any(unit.name in PROTOSS for unit in env.scenario.enemy_units)
    observation = 4 + m * (5 + theirs + bits) + (n - 1) * (5 + ours + bits) + 1 + ours + bits
    state = n * (4 + ours + bits) + m * (3 + theirs + bits) + n * (6 + m)
    assert step.observations.shape == (2, n, observation) == (2, n, env.spec.observation_size)
    assert step.state.shape == (2, state) == (2, env.spec.state_size)
    assert step.available_actions.shape == (2, n, 6 + m)
    assert step.observations.dtype == step.state.dtype == step.rewards.dtype == torch.float32


@pytest.mark.parametrize("name", MAX_REWARDS)
def test_max_rewards_of_smac_maps(name):
    assert SCENARIOS[name].max_reward == MAX_REWARDS[name]


def test_observation_values(arrange):
    places = [(10, 16), (12, 16), (10, 20), (25, 10), (10, 13), (14, 16), (15, 19), (30, 9), (30, 12), (30, 15)]
    shield, health = [40, 80, 50, 50, 25, 80, 20, 50, 50, 50], [80, 40, 100, 0, 50, 80, 80, 100, 100, 50]
    env = arrange("2s3z", places, shield=shield, health=health)
    battle = env._battle
    first = env.features.observations(battle)[0, 0]
    moves, enemies, allies, own = env.features.layout.split(first)
    assert moves.tolist() == [1, 1, 1, 1]
    # attackable, distance, dx, dy, health, shield, zealot, stalker (enemies' order differs from the allies')
    assert torch.allclose(enemies[0], torch.tensor([1, 4 / 9, 4 / 9, 0, 1, 1, 0, 1.0]))
    assert torch.allclose(enemies[1], torch.tensor([1, 34**0.5 / 9, 5 / 9, 3 / 9, 1, 0.25, 0, 1.0]))
    assert enemies[2:].abs().sum() == 0
    # visible, distance, dx, dy, health, shield, stalker, zealot; the dead and the far are zeros
    assert torch.allclose(allies[0], torch.tensor([1, 2 / 9, 2 / 9, 0, 0.5, 1, 1, 0.0]))
    assert torch.allclose(allies[1], torch.tensor([1, 4 / 9, 0, 4 / 9, 1, 1, 0, 1.0]))
    assert allies[2].abs().sum() == 0
    assert torch.allclose(allies[3], torch.tensor([1, 3 / 9, 0, -3 / 9, 0.5, 0.5, 0, 1.0]))
    assert torch.allclose(own, torch.tensor([1, 0.5, 1, 0.0]))
    assert env.features.observations(battle)[0, 3].abs().sum() == 0


def test_state_values(arrange):
    places = [(10, 16), (12, 18), (8, 14), (20, 16), (22, 20), (24, 12)]
    env = arrange("3m", places, health=[45, 9, 0, 45, 0, 15], cooldown=[7.5, 0, 0, 3, 3, 3], last_actions=[2, 6, -1])
    state = env.features.state(env._battle)[0]
    assert torch.allclose(
        state[:12].view(3, 4), torch.tensor([[1, 0.5, -6 / 32, 0], [0.2, 0, -4 / 32, 2 / 32], [0.0] * 4])
    )
    assert torch.allclose(state[12:21].view(3, 3), torch.tensor([[1, 4 / 32, 0], [0.0] * 3, [1 / 3, 8 / 32, -4 / 32]]))
    assert state[21:].view(3, 9).nonzero().tolist() == [[0, 2], [1, 6]]


def test_medivac_energy_in_the_state():
    env = SmacLike(scenario="MMM")
    rows = env.reset(0).state[0][: 10 * 7].view(10, 7)
    assert rows[9].tolist()[:2] == [1.0, 0.25]
    assert rows[:9, 1].abs().sum() == 0
    assert rows[9, -3:].tolist() == [0, 0, 1]


def test_masks(arrange):
    places = [(10, 16), (31.5, 23.5), (5, 12), (16, 16), (16.1, 16), (10, 20)]
    env = arrange("3m", places, health=[45, 45, 0, 45, 45, 45])
    mask = env.features.masks(env._battle)[0].int().tolist()
    assert mask[0] == [0, 1, 1, 1, 1, 1, 1, 0, 1]  # six cells are legal, a little more is not
    assert mask[1] == [0, 1, 0, 1, 0, 1, 0, 0, 0]  # the corner
    assert mask[2] == [1, 0, 0, 0, 0, 0, 0, 0, 0]  # the dead


def test_medivac_slots_are_comrades(arrange):
    places = [(10.0 + 0.2 * i, 16) for i in range(8)] + [(22, 16), (12, 18)] + [(14, 16)] * 12
    env = arrange("MMM2", places, health=[125, 125] + [45] * 6 + [45, 150] + [125] * 3 + [45] * 8 + [150])
    mask = env.features.masks(env._battle)[0, 9, 6:].tolist()
    assert mask == [True] * 8 + [False, False] + [False, False]


@pytest.mark.parametrize("name", SCENARIOS)
def test_agents_are_sorted_by_type_and_place(name):
    env = SmacLike(8, scenario=name)
    env.reset(3)
    n = env.spec.agents
    x, y = env.state["position"][:, :, :n].unbind(1)
    names = [unit.name for unit in env.scenario.ally_units]
    for i in range(n - 1):
        if names[i] == names[i + 1]:
            assert ((x[:, i] < x[:, i + 1]) | ((x[:, i] == x[:, i + 1]) & (y[:, i] < y[:, i + 1]))).all()
    low, high = env.rules.low[..., 0], env.rules.high[..., 0]
    assert ((env.state["position"] >= low) & (env.state["position"] <= high)).all()
    assert not env._battle.available[:, 6:].any() or name.startswith("MMM")


@pytest.mark.parametrize("name", ["3m", "25m", "3s5z", "1c3s5z", "MMM", "2s3z"])
def test_formations_of_equal_armies_are_mirror_images(name):
    scenario = SCENARIOS[name]
    left = formation(scenario.ally_units, (9.0, 16.0), facing=1)
    right = formation(scenario.ally_units, (23.0, 16.0), facing=-1)
    for kind in {unit.name for unit in scenario.ally_units}:
        rows = [i for i, unit in enumerate(scenario.ally_units) if unit.name == kind]
        mirrored = sorted((32.0 - right[i][0], right[i][1]) for i in rows)
        assert [left[i] for i in rows] == sorted(left[i] for i in rows)
        assert torch.allclose(torch.tensor(mirrored), torch.tensor([left[i] for i in rows]))


def test_healers_stand_in_the_rear():
    scenario = SCENARIOS["MMM"]
    places = formation(scenario.ally_units, (9.0, 16.0), facing=1)
    healers = [x for (x, _), unit in zip(places, scenario.ally_units, strict=True) if unit.healer]
    assert max(healers) < min(x for (x, _), unit in zip(places, scenario.ally_units, strict=True) if not unit.healer)
