"""The rollout on a walk small enough to play by hand."""

import json

import numpy as np
import pytest
import torch

from madiff.experiment.rollout import Rollout, evaluate, rollout, write_episodes
from madiff.interfaces import BatchedEnvironment, EnvironmentSpec, TimeStep, UserError

LEFT, STAY, RIGHT = 0, 1, 2


class Walk:
    """Two agents on a line from 0 to 6, starting at a random place; wins when both stand on 6, costs 1 per agent on 0.

    Every step pays each agent its place; 0 has no way left. The longest episode takes 8 steps.
    """

    def __init__(self, copies, continuous=False, endless=False):
        self.copies, self.device, self.endless = copies, torch.device("cpu"), endless
        self.spec = EnvironmentSpec("walk", "line", 2, 2, 1 if continuous else 3, not continuous, 1, 8)
        self.reset(0)

    def view(self, paid):
        place = self.place.float()
        observations = torch.stack([place, self.time[:, None].expand(-1, 2).float()], -1)
        available = torch.ones(self.copies, 2, 3, dtype=torch.bool)
        available[..., LEFT] = self.place > 0
        won = (self.place == 6).all(1)
        terminated = won & ~torch.tensor(self.endless)
        return TimeStep(
            observations=observations,
            state=place.sum(1, keepdim=True),
            available_actions=available if self.spec.discrete else None,
            rewards=place * paid[:, None],
            costs=(self.place == 0).float() * paid[:, None],
            terminated=terminated,
            truncated=(self.time == 8) & ~won & ~torch.tensor(self.endless),
            info={"won": won, "arrived": self.place == 6},
        )

    def reset(self, seed):
        self.place = torch.randint(0, 4, (self.copies, 2), generator=torch.Generator().manual_seed(seed))
        self.time = torch.zeros(self.copies, dtype=torch.int64)
        self.done = torch.zeros(self.copies, dtype=torch.bool)
        return self.view(torch.zeros(self.copies))

    def step(self, actions):
        move = actions - 1 if self.spec.discrete else actions[..., 0].sign().long()
        running = ~self.done
        self.place = torch.where(running[:, None], (self.place + move).clamp(0, 6), self.place)
        self.time += running
        step = self.view(running.float())
        self.done = self.done | step.terminated | step.truncated
        return step

    @property
    def state(self):
        return {"place": self.place, "time": self.time, "done": self.done}

    def set_state(self, state):
        self.place, self.time, self.done = state["place"], state["time"], state["done"]

    def frame(self, copy=0):
        return self.place[copy].repeat(3).reshape(1, 2, 3).to(torch.uint8).numpy()


class Constant:
    """Every agent always does the same; remembers what it was asked."""

    def __init__(self, action):
        self.action, self.resets, self.asked = action, [], []

    def reset(self, seed, n):
        self.resets.append((seed, n))

    def act(self, observations, masks, active=None):
        self.asked.append(active.clone())
        return torch.as_tensor(self.action).expand(*observations.shape[:2], *np.shape(self.action))


class Drunk:
    """Random legal moves from the seed of its last reset, mostly to the right."""

    def reset(self, seed, n):
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, observations, masks, active=None):
        weights = (masks * torch.tensor([1.0, 1.0, 8.0])).flatten(0, 1)
        return torch.multinomial(weights, 1, generator=self.generator).reshape(masks.shape[:2])


def played_by_hand(place, move):
    """Length, both agents' returns and whether the walk is won, for one copy that always moves the same way."""
    place, returns = np.array(place), np.zeros(2)
    for steps in range(1, 9):
        place = np.clip(place + move, 0, 6)
        returns += place
        if (place == 6).all():
            return steps, returns, True
    return 8, returns, False


def test_the_walk_keeps_the_contract():
    assert isinstance(Walk(1), BatchedEnvironment)


def test_outcomes_equal_those_played_by_hand():
    env = Walk(50)
    starts = env.reset(3).observations[..., 0].numpy()
    run = rollout(env, Constant(RIGHT), seed=3)
    for copy, start in enumerate(starts):
        length, returns, won = played_by_hand(start, +1)
        assert (run.lengths[copy], run.won[copy]) == (length, won) and run.terminated[copy] == won
        assert run.agent_returns[copy].tolist() == returns.tolist() and run.returns[copy] == returns.mean()
    assert len(set(run.lengths)) > 2 and run.costs.sum() == 0 and run.illegal.sum() == 0


def test_an_agent_that_left_its_goal_again_had_arrived():
    class Turning(Constant):
        def act(self, observations, masks, active=None):
            return torch.where(observations[..., 1] < 5, RIGHT, LEFT)

    env = Walk(40)
    starts = env.reset(5).observations[..., 0].numpy()
    run = rollout(env, Turning(RIGHT), seed=5)
    np.testing.assert_array_equal(run.arrived, starts >= 1)
    assert 0 < (run.lengths == 8).sum() < 40
    assert [record["arrived"] for record in run.records()] == run.arrived.tolist()


def test_costs_and_illegal_actions_are_counted_while_the_episode_runs():
    env = Walk(20)
    starts = env.reset(0).observations[..., 0].numpy()
    run = rollout(env, Constant(LEFT), seed=0)
    assert run.illegal.tolist() == (8 - starts).sum(1).tolist()
    np.testing.assert_array_equal(run.agent_costs, np.minimum(8, 9 - starts.clip(1)))
    np.testing.assert_array_equal(run.costs, run.agent_costs.mean(1))


def test_the_policy_learns_which_copies_still_run():
    policy = Constant(RIGHT)
    run = rollout(Walk(30), policy, seed=1)
    running = torch.stack(policy.asked).sum(0)
    assert running.tolist() == run.lengths.tolist()
    assert policy.resets[0][1] == 30 and policy.resets[0][0] != 1


def test_the_seed_fixes_everything():
    first, again, other = (rollout(Walk(40), Drunk(), seed=seed) for seed in (5, 5, 6))
    assert first.records() == again.records() != other.records()


def test_a_recording_holds_each_episode_up_to_its_end():
    run = rollout(Walk(25), Drunk(), seed=2, record=True)
    store = run.store
    assert store.lengths.tolist() == run.lengths.tolist() and len(set(run.lengths)) > 1
    np.testing.assert_allclose(store.returns(), run.agent_returns)
    np.testing.assert_allclose(store.team_costs(), run.costs)
    assert store.terminated.tolist() == run.terminated.tolist()
    assert store.action_size == 3 and store.available_actions is not None and store.state.shape[1] == 1
    for number in range(25):
        single = store.subset([number])
        place, clock = single.observations[..., 0], single.observations[:, 0, 1]
        assert clock.tolist() == list(range(int(run.lengths[number]) + 1))
        assert torch.equal((place[:-1] + single.actions - 1).clamp(0, 6), place[1:])
        assert torch.equal(single.rewards, place[1:])


def test_a_recording_refuses_illegal_actions():
    with pytest.raises(UserError, match="takes an action that is not available"):
        rollout(Walk(20), Constant(LEFT), seed=0, record=True)


def test_a_film_shows_one_copy_from_before_its_first_step_to_its_end():
    env = Walk(10)
    start = env.reset(4).observations[..., 0].numpy()
    run = rollout(env, Constant(RIGHT), seed=4, film=7)
    places = np.stack([frame[0, :, 0] for frame in run.frames])
    assert len(run.frames) == run.lengths[7] + 1 and run.frames[0].dtype == np.uint8
    assert places.tolist() == [np.minimum(start[7] + t, 6).tolist() for t in range(len(places))]


def test_progress_counts_every_episode_once():
    ended = []
    rollout(Walk(30), Drunk(), seed=0, progress=ended.append)
    assert sum(ended) == 30 and min(ended) > 0


@pytest.mark.parametrize(
    ("continuous", "action", "message"),
    [
        (False, 3, "agent 0 chose an action outside 0 to 2"),
        (False, -1, "outside 0 to 2"),
        (False, 1.0, r"float32; allowed: \(4, 2\) int64"),
        (False, [1], r"actions of shape \(4, 2, 1\)"),
        (True, [float("nan")], "NaN or infinite"),
        (True, 0.5, r"actions of shape \(4, 2\)"),
    ],
)
def test_actions_that_cannot_be_executed_are_refused(continuous, action, message):
    with pytest.raises(UserError, match=message):
        rollout(Walk(4, continuous), Constant(action), seed=0)


def test_continuous_actions_walk_too():
    run = rollout(Walk(4, continuous=True), Constant([1.0]), seed=0, record=True)
    assert run.won.all() and run.illegal.sum() == 0 and not run.store.discrete


def test_idle_copies_may_hold_anything_of_the_right_shape():
    class Careless(Constant):
        def act(self, observations, masks, active=None):
            actions = super().act(observations, masks, active).clone()
            actions[~active] = 99
            return actions

    assert rollout(Walk(30), Careless(RIGHT), seed=1).records() == rollout(Walk(30), Constant(RIGHT), seed=1).records()


def test_an_episode_past_the_limit_is_an_error_of_the_environment():
    with pytest.raises(RuntimeError, match="past its limit of 8 steps"):
        rollout(Walk(2, endless=True), Constant(STAY), seed=0)


def test_evaluation_in_waves_can_be_repeated_episode_by_episode(tmp_path):
    run = evaluate(Walk, Drunk(), episodes=25, seed=9, copies=10, record=True, film=1)
    assert run.episodes == run.store.episodes == 25 and len(run.frames) == run.lengths[1] + 1
    assert len(set(run.seeds)) == 3 and run.copies.tolist() == [*range(10), *range(10), *range(5)]
    again = rollout(Walk(10), Drunk(), seed=int(run.seeds[13]))
    repeated = again.records()[run.copies[13]]
    assert {**repeated, "episode": 13} == run.records()[13]

    write_episodes(tmp_path / "episodes.jsonl", run.records())
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert lines == run.records() and [line["episode"] for line in lines] == list(range(25))
    assert np.mean([line["return"] for line in lines]) == pytest.approx(run.returns.mean())


def test_evaluation_needs_an_episode():
    with pytest.raises(UserError, match="at least 1"):
        evaluate(Walk, Drunk(), episodes=0, seed=0)


def test_concatenation_keeps_the_order():
    parts = [rollout(Walk(n), Drunk(), seed=n) for n in (3, 4)]
    joined = Rollout.concatenate(parts)
    assert joined.lengths.tolist() == [*parts[0].lengths, *parts[1].lengths]
    assert joined.seconds == pytest.approx(parts[0].seconds + parts[1].seconds)
