"""The bridge probe: its rules against a second, slow reading of them, its optimum and what imitation gets by search."""

from collections import Counter, defaultdict
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from envs.bridge import best_length, best_return
from madiff.experiment.rollout import rollout
from madiff.interfaces import UserError

FORWARD, STAY, BACK = range(3)
MOVE = {FORWARD: 1, STAY: 0, BACK: -1}


def outcome(length, places, actions):
    """One step by the rules as a reader would play them: next places, team reward, who bounced."""
    end = length + 2
    bridge = range(2, end)
    after, bounced = list(places), [False, False]
    for me, other in ((0, 1), (1, 0)):
        if places[me] == end:
            continue
        target = max(places[me] + MOVE[actions[me]], 0)
        steps_on = places[me] not in bridge and target in bridge
        other_steps_on = places[other] not in bridge and places[other] + MOVE[actions[other]] in bridge
        if steps_on and (places[other] in bridge or (other_steps_on and places[other] != end)):
            bounced[me] = True
        else:
            after[me] = target
    arrivals = sum(now == end and before != end for now, before in zip(after, places, strict=True))
    return tuple(after), 0.5 * arrivals - 0.01 - 0.1 * any(bounced), bounced


def search(length, choose):
    """Value of the start with steps left, for a rule that joins the values of the joint actions at the places."""
    end = length + 2

    @cache
    def value(places, left):
        if left == 0 or places == (end, end):
            return 0.0
        worth = {}
        for actions in product(range(3), repeat=2):
            after, reward, _ = outcome(length, places, actions)
            worth[actions] = reward + value(after, left - 1)
        return choose(places, worth)

    return value((1, 1), 3 * 2 * (length + 1))


@pytest.mark.parametrize("length", [1, 3])
def test_every_step_follows_the_rules(length):
    ways = [range(length + 3)] * 2 + [range(3)] * 2
    on_bridge = range(2, length + 2)
    cases = [c for c in product(*ways) if not (c[0] in on_bridge and c[1] in on_bridge)]
    env = envs.make_batched("bridge", len(cases), length=length)
    env.reset(0)
    cases_tensor = torch.tensor(cases)
    env.set_state(env.state | {"place": cases_tensor[:, :2]})
    step = env.step(cases_tensor[:, 2:])
    found = env.state["place"].tolist()
    for i, (a, b, *actions) in enumerate(cases):
        if (a, b) == (length + 2, length + 2):  # was over before
            assert found[i] == [a, b] and not step.rewards[i].any()
            continue
        after, reward, bounced = outcome(length, (a, b), actions)
        assert tuple(found[i]) == after
        assert step.rewards[i].tolist() == pytest.approx([reward] * 2)
        assert step.costs[i].tolist() == [float(b) for b in bounced]
        assert bool(step.terminated[i]) == bool(step.info["won"][i]) == (after == (length + 2,) * 2)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_the_best_return_and_that_demonstrators_reach_it(length):
    assert search(length, lambda _, worth: max(worth.values())) == pytest.approx(best_return(length))
    env = envs.make_batched("bridge", 200, length=length)
    run = rollout(env, envs.behaviour(env, "expert"), seed=0)
    assert run.returns == pytest.approx(np.full(200, best_return(length)), abs=1e-5)
    assert (run.lengths == best_length(length)).all() and run.won.all() and not run.costs.any()


def test_demonstrators_begin_with_either_agent_and_wait_in_both_ways():
    env = envs.make_batched("bridge", 4000)
    run = rollout(env, envs.behaviour(env, "expert"), seed=0, record=True)
    begins = run.store.actions.numpy()[np.cumsum(run.lengths) - run.lengths]
    counts = Counter(map(tuple, begins.tolist()))
    assert set(counts) == {(FORWARD, STAY), (FORWARD, BACK), (STAY, FORWARD), (BACK, FORWARD)}
    assert all(abs(count - 1000) < 4 * np.sqrt(1000 * 3 / 4) for count in counts.values())


def test_independent_imitation():
    """Tabular imitation of the joint places: greedy bounces for ever, sampled gets through with bounces and delays."""
    env = envs.make_batched("bridge", 4000)
    run = rollout(env, envs.behaviour(env, "expert"), seed=0, record=True)
    store, chances = run.store, defaultdict(lambda: np.full((2, 3), 1e-9))  # uniform where nobody has been
    seen = store.observations[..., :6].argmax(-1).numpy()
    starts = np.concatenate([[0], np.cumsum(run.lengths + 1)[:-1]])
    for episode, start in enumerate(starts):
        for t in range(run.lengths[episode]):
            for agent, action in enumerate(store.actions[start - episode + t].tolist()):
                chances[tuple(seen[start + t])][agent, action] += 1

    def greedy(places, worth):
        return worth[tuple(chances[places].argmax(1).tolist())]

    def sampled(places, worth):
        table = chances[places] / chances[places].sum(1, keepdims=True)
        return sum(table[0, a] * table[1, b] * worth[a, b] for a, b in worth)

    assert search(3, greedy) == pytest.approx(-0.11 * 24)
    assert search(3, sampled) == pytest.approx(0.86, abs=0.01)


def test_qualities_are_ordered():
    env = envs.make_batched("bridge", 2000)
    means = {q: rollout(env, envs.behaviour(env, q), seed=3).returns.mean() for q in
             ("expert", "good", "medium", "poor", "random")}  # fmt: skip
    assert list(means.values()) == sorted(means.values(), reverse=True)
    assert means["expert"] == pytest.approx(0.92) and means["good"] > 0.8 and means["random"] < 0
    replay = rollout(env, envs.behaviour(env, "replay"), seed=3).returns
    assert replay[:200].mean() < 0 and replay[-200:].mean() == pytest.approx(means["medium"], abs=0.15)


def test_observations():
    env = envs.make_batched("bridge", 1, length=1)
    assert env.reset(0).observations[0].tolist() == [[0, 1, 0, 0] * 2 + [0] * 7] * 2
    step = env.step(torch.tensor([[FORWARD, BACK]]))
    first = [0, 0, 1, 0] + [1, 0, 0, 0] + [1, 0, 0] + [0, 0, 1]
    second = [1, 0, 0, 0] + [0, 0, 1, 0] + [0, 0, 1] + [1, 0, 0]
    assert torch.equal(step.observations[0], torch.tensor([[*first, 1 / 12], [*second, 1 / 12]]))
    assert torch.equal(step.state[0], step.observations[0, 0])


def test_patience_ends_in_truncation():
    env = envs.make_batched("bridge", 1)
    env.reset(0)
    steps = [env.step(torch.tensor([[STAY, STAY]])) for _ in range(24)]
    assert [bool(step.truncated) for step in steps] == [False] * 23 + [True]
    assert not steps[-1].terminated.any() and not steps[-1].info["won"].any()
    assert not env.step(torch.tensor([[FORWARD, STAY]])).rewards.any()


def test_pettingzoo_form():
    parallel_api_test(envs.make("bridge"), num_cycles=60)
    parallel_seed_test(lambda: envs.make("bridge"), num_cycles=30)
    env = envs.make("bridge", render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    _, rewards, _, _, infos = env.step({"agent_0": FORWARD, "agent_1": FORWARD})
    assert rewards == pytest.approx({"agent_0": -0.11, "agent_1": -0.11}) and infos["agent_1"]["cost"] == 1.0
    env.step({"agent_0": FORWARD, "agent_1": STAY})
    after = env.render()
    assert before.shape == after.shape and before.dtype == np.uint8 and (before != after).any()


def test_user_errors_and_spec():
    with pytest.raises(UserError, match="length: 0 is not a length; allowed: 1 to 20"):
        envs.make("bridge", length=0)
    with pytest.raises(UserError, match="allowed: expert, good, medium, poor, random, replay"):
        envs.behaviour(envs.make_batched("bridge", 1), "great")
    spec = envs.make_batched("bridge", 2, length=5).spec
    assert envs.make_batched("bridge", 3, **spec.options).spec == spec
