"""Illegal actions, reward, ends, auto-reset, randomness and states of the batched environment."""

import pytest
import torch

from envs.smac_like import SmacLike
from envs.smac_like.scenarios import SCENARIOS
from madiff.interfaces import BatchedEnvironment, UserError


def random_legal(mask, generator):
    return (torch.rand(mask.shape, generator=generator) * mask).argmax(-1)


def same(first, second):
    """Exact equality of two time steps."""
    tensors = zip(first[:-1], second[:-1], strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and all(
        torch.equal(first.info[k], second.info[k]) for k in first.info
    )


def run(env, steps, seed=0):
    generator, trace = torch.Generator().manual_seed(seed), [env.reset(seed)]
    for _ in range(steps):
        trace.append(env.step(random_legal(trace[-1].available_actions, generator)))
    return trace


def test_is_a_batched_environment():
    assert isinstance(SmacLike(2), BatchedEnvironment)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_plays(name):
    env = SmacLike(3, scenario=name, auto_reset=True)
    for step in run(env, 6):
        assert all(torch.isfinite(x).all() for x in (step.observations, step.state, step.rewards))
        assert step.observations.abs().max() <= 1
        assert (step.rewards >= 0).all() and (step.costs == 0).all()
        assert step.available_actions.any(-1).all()


def test_illegal_becomes_stop_and_is_counted(arrange):
    places, health = [(10, 16), (12, 16), (5, 12), (30, 16), (30, 18), (30, 20)], [45, 45, 0, 45, 45, 45]
    for wrong in (6, 99, -1):
        env, twin = (arrange("3m", places, health=health) for _ in range(2))
        step, other = env.step(torch.tensor([[wrong, wrong, wrong]])), twin.step(torch.tensor([[1, 1, 0]]))
        assert step.info["illegal_actions"].tolist() == [3]
        assert other.info["illegal_actions"].tolist() == [0]
        assert torch.equal(step.observations, other.observations) and torch.equal(step.state, other.state)


def test_strict_raises():
    env = SmacLike(2, scenario="3m", strict=True)
    env.reset(0)
    with pytest.raises(UserError, match="action 0 of agent 0 in copy 0 is illegal"):
        env.step(torch.zeros(2, 3, dtype=torch.long))


def test_enemy_regeneration_pays(arrange):
    """SMAC's absolute value: an enemy shield that comes back counts as reward."""
    places = [(1, 9 + i) for i in range(5)] + [(31, 9 + i) for i in range(5)]
    env = arrange("2s3z", places, shield=[40.0] * 10, calm=[200.0] * 10)
    step = env.step(torch.ones(1, 5, dtype=torch.long))
    assert step.rewards[0, 0] == pytest.approx(5 * 8 * 0.125 * 20 / 1020)


def test_a_won_battle_pays_twenty_marines(arrange):
    """Marines neither heal nor regain shields: winning pays R_max exactly, however it came about."""
    places = [(10, 16), (10, 15), (10, 17), (15, 16), (15, 15), (15, 17)]
    env = arrange("3m", places, copies=8)
    env.rules.health[:] = 45
    total, step = torch.zeros(8), None
    for _ in range(60):
        mask = env.features.masks(env._battle)
        actions = torch.where(
            mask[..., 6:].any(-1), 6 + mask[..., 6:].int().argmax(-1), torch.where(mask[..., 1], 1, 0)
        )
        step = env.step(actions)
        total += step.rewards[:, 0]
    assert step.info["won"].any() and (step.terminated).all()
    assert total[step.info["won"]].tolist() == pytest.approx([20.0] * int(step.info["won"].sum()), abs=1e-4)
    assert (total[~step.info["won"]] < 20 - 200 * 20 / 365).all()


def test_medivacs_alone_have_lost(arrange):
    places = [(1, 9)] * 9 + [(1, 20)] + [(30, 9 + i) for i in range(10)]
    env = arrange("MMM", places, health=[0] * 9 + [150] + [125, 125] + [45] * 7 + [150])
    step = env.step(torch.tensor([[0] * 9 + [1]]))
    assert step.terminated.all() and not step.info["won"].any()


def test_the_limit_truncates_and_the_finished_stand_still():
    env = SmacLike(2, scenario="3m")
    env.reset(0)
    state = env.state
    state["elapsed"] = torch.tensor([59, 10])
    env.set_state(state)
    first = env.step(torch.ones(2, 3, dtype=torch.long))
    assert first.truncated.tolist() == [True, False] and not first.terminated.any()
    second = env.step(torch.tensor([[2, 2, 2], [2, 2, 2]]))
    assert second.truncated.tolist() == [True, False]
    assert torch.equal(first.observations[0], second.observations[0]) and torch.equal(first.state[0], second.state[0])
    assert not torch.equal(first.state[1], second.state[1])
    assert second.rewards[0].abs().sum() == 0 and second.info["illegal_actions"][0] == 0


def test_auto_reset_starts_anew():
    env, plain = SmacLike(64, auto_reset=True), SmacLike(64)
    traces = run(env, 60), run(plain, 60)
    ended = torch.zeros(64, dtype=torch.bool)
    for step, other in list(zip(*traces, strict=True))[1:]:
        done = step.terminated | step.truncated
        fresh, running = done & ~ended, ~done & ~ended
        assert torch.equal(step.observations[running], other.observations[running])
        assert torch.equal(step.info["final_observations"][fresh], other.observations[fresh])
        assert torch.equal(step.info["final_state"][fresh], other.state[fresh])
        assert (step.observations[done, :, -1] == 1).all() and (step.available_actions[done, :, 1]).all()
        ended |= done
        if ended.any():  # from here on the two play different actions
            break
    assert ended.any()
    assert env.state["elapsed"].max() < 60 and not env.state["terminated"].any()


def test_same_seed_same_battles():
    first, second, other = run(SmacLike(4), 30), run(SmacLike(4), 30), run(SmacLike(4), 1, seed=1)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].observations, other[0].observations)


def test_copies_do_not_depend_on_their_number():
    few, many = SmacLike(3), SmacLike(7)
    a, b = few.reset(9), many.reset(9)
    for _ in range(20):
        actions = (b.available_actions.float() * torch.arange(9.0)).argmax(-1)
        a, b = few.step(actions[:3]), many.step(actions)
        assert torch.allclose(a.state, b.state[:3], atol=1e-5)


@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM", "1c3s5z"])
def test_a_copied_state_repeats_the_step(name):
    """Single battles taken out of 64 go on exactly as among the others, step for step."""
    crowd, single = SmacLike(64, scenario=name), SmacLike(1, scenario=name)
    generator = torch.Generator().manual_seed(1)
    step = crowd.reset(2)
    for _ in range(12):
        step = crowd.step(random_legal(step.available_actions, generator))
    copy = 17
    single.set_state({key: value[copy : copy + 1] for key, value in crowd.state.items()})
    for _ in range(15):
        actions = random_legal(step.available_actions, generator)
        step, alone = crowd.step(actions), single.step(actions[copy : copy + 1])
        # Sums over units may be taken in another order: equal to rounding.
        assert torch.equal(step.available_actions[copy], alone.available_actions[0])
        assert torch.allclose(step.observations[copy], alone.observations[0], atol=1e-5)
        assert torch.allclose(step.state[copy], alone.state[0], atol=1e-5)
        assert torch.allclose(step.rewards[copy], alone.rewards[0], atol=1e-5)


def test_a_step_repeats_exactly():
    env = SmacLike(8, scenario="MMM")
    run(env, 10)
    before, actions = env.state, torch.ones(8, 10, dtype=torch.long)
    first = env.step(actions)
    env.set_state(before)
    assert same(first, env.step(actions))


def test_set_state_refuses_what_does_not_fit():
    env = SmacLike(2)
    env.reset(0)
    with pytest.raises(UserError, match="state: position has shape"):
        env.set_state({key: value[:1] for key, value in env.state.items()})
    with pytest.raises(UserError, match="state: keys"):
        env.set_state({"position": env.state["position"]})
    with pytest.raises(UserError, match="actions: shape"):
        env.step(torch.ones(2, 5, dtype=torch.long))


def test_steps_leave_earlier_tensors_alone():
    env = SmacLike(4, scenario="2s3z")
    step = env.reset(0)
    kept = [x.clone() for x in (step.observations, step.state, step.available_actions)]
    for _ in range(3):
        env.step(torch.ones(4, 5, dtype=torch.long))
    assert all(
        torch.equal(a, b) for a, b in zip(kept, (step.observations, step.state, step.available_actions), strict=True)
    )


def test_the_step_is_one_graph():
    """No graph break: `torch.export`-like tracing sees the whole step, whatever the scenario needs."""
    for name in ("3m", "MMM2", "1c3s5z", "so_many_baneling"):
        env = SmacLike(2, scenario=name, auto_reset=True)
        env.reset(0)
        actions = torch.ones(2, env.spec.agents, dtype=torch.long)
        explained = torch._dynamo.explain(env._step)(env._battle, actions)
        assert explained.graph_break_count == 0 and explained.graph_count == 1
        torch._dynamo.reset()


@pytest.mark.learn
def test_compiled_equals_eager():
    """Slow: the compiler takes about a minute."""
    compiled, eager = SmacLike(16, auto_reset=True, compile=True), SmacLike(16, auto_reset=True)
    for fast, plain in zip(run(compiled, 40), run(eager, 40), strict=True):
        assert torch.equal(fast.available_actions, plain.available_actions)
        assert torch.allclose(fast.observations, plain.observations, atol=1e-4)
        assert torch.allclose(fast.rewards, plain.rewards, atol=1e-4)
