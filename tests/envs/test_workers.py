"""Batching of any PettingZoo environment: rows and masks, seeds, states; and worker processes in good days and bad."""

import gc
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_parallel
from pettingzoo.test import parallel_api_test

from envs.parallel_view import ParallelView
from envs.workers import RandomPolicy, WorkerEnvironment
from envs.workers.pool import default_workers
from madiff.experiment.rollout import rollout
from madiff.interfaces import BatchedEnvironment, UserError


def batched(make, copies=1, workers=0, **options):
    return WorkerEnvironment("toy", "toy", make, copies, workers=workers, **options)


def inside(env, copy=0):
    """The environment itself, of a batched form without workers."""
    return env.pool.share.singles[copy].env


def test_sizes_padding_masks_and_costs():
    env = batched(toy_parallel.countdown)
    assert isinstance(env, BatchedEnvironment)
    assert (env.spec.observation_sizes, env.spec.action_sizes) == ((3, 4, 5), (2, 3, 4))
    assert (env.spec.observation_size, env.spec.action_size, env.spec.state_size) == (5, 4, 2)
    assert env.spec.discrete and env.spec.episode_limit == 500
    step = env.reset(5)
    assert step.available_actions[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]]
    assert not step.observations[0, 0, 3:].any() and not step.observations[0, 1, 4:].any()
    assert step.state[0].tolist() == pytest.approx([inside(env).number, 0])
    step = env.step(torch.tensor([[0, 2, 3]]))
    assert inside(env).received[-1] == {"runner_0": 0, "runner_1": 12, "runner_2": 23}
    assert step.rewards.tolist() == [[0, 12, 23]] and step.costs.tolist() == [[1, 1, 1]]
    assert step.observations[0, :, 2].tolist() == [0, 12, 23]


def test_illegal_actions_become_the_first_legal_one_and_are_counted():
    env = batched(toy_parallel.countdown)
    env.reset(0)
    step = env.step(torch.tensor([[1, 0, 1]]))
    assert inside(env).received[-1] == {"runner_0": 0, "runner_1": 11, "runner_2": 21}
    assert step.info["illegal_actions"].tolist() == [2]


def test_agents_that_leave():
    env = batched(toy_parallel.countdown)
    env.reset(0)
    actions = torch.tensor([[0, 1, 1]])
    steps = [env.step(actions) for _ in range(4)]
    assert steps[1].observations[0, 0].any(), "what an agent sees last is shown"
    for step in steps[1:3]:  # between its own end and that of the episode
        assert step.available_actions[0, 0].tolist() == [True, False, False, False]
    assert not steps[2].observations[0, 0].any() and steps[2].rewards[0, 0] == steps[2].costs[0, 0] == 0
    assert [bool(step.terminated) for step in steps] == [False, False, False, True]
    assert not any(bool(step.truncated) for step in steps)
    assert steps[3].available_actions[0, 2].all() and steps[3].observations[0, 2].any()
    still = env.step(actions)
    assert still.terminated.all() and not still.rewards.any() and not still.costs.any()
    assert torch.equal(still.observations, steps[3].observations)
    assert not env.reset(0).terminated.any()


def test_continuous_actions_reach_the_bounds_of_the_box():
    env = batched(toy_parallel.floats)
    assert not env.spec.discrete and env.spec.action_size == 2 and env.spec.action_sizes == ()
    assert env.reset(0).available_actions is None
    env.step(torch.tensor([[[-1.0, -1.0], [0.5, 3.0]]]))
    received = inside(env).received[-1]
    assert received["runner_0"].tolist() == [[0, -1]] and received["runner_1"].tolist() == [[7.5, 1]]
    assert received["runner_0"].dtype == np.float64


def test_limits():
    for make, given, expected in (
        (toy_parallel.endless, None, 500),
        (partial(toy_parallel.endless, 7), None, 7),
        (partial(toy_parallel.endless, 7), 3, 3),
    ):
        assert batched(make, limit=given).spec.episode_limit == expected
    env = batched(toy_parallel.endless, limit=2)
    env.reset(0)
    steps = [env.step(torch.zeros(1, 2, dtype=torch.int64)) for _ in range(3)]
    assert [bool(step.truncated) for step in steps] == [False, True, True]
    assert steps[1].rewards.all() and not steps[2].rewards.any() and not steps[2].terminated.any()


def test_observations_of_other_kinds():
    env = batched(toy_parallel.masked_observations)
    step = env.reset(0)
    assert env.spec.observation_size == 3 and env.spec.state_size == 0
    assert (step.observations.sum(-1) == 1).all()
    assert batched(toy_parallel.pictures).reset(0).observations.shape == (1, 2, 60)
    assert env.frame().shape == (80, 320, 3) and (env.frame() < 128).any()
    assert batched(toy_parallel.countdown).frame().shape == (4, 6, 3)


def play(env, seed, steps=4):
    """All that a run shows, under actions that do not depend on the number of workers."""
    generator, shown = torch.Generator().manual_seed(0), [env.reset(seed)]
    for _ in range(steps):
        draws = torch.rand(shown[-1].available_actions.shape, generator=generator)
        shown.append(env.step((draws * shown[-1].available_actions).argmax(-1)))
    return shown


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))


def test_results_do_not_depend_on_the_number_of_workers():
    runs = []
    for workers in (0, 1, 3):
        env = batched(toy_parallel.countdown, copies=5, workers=workers)
        runs.append(play(env, seed=2**40 + 1))
        assert all(map(same, runs[-1], play(env, seed=2**40 + 1)))
        assert [frame[0, 0, 0] for frame in map(env.frame, range(5))] == (255 * env.last.state[:, 0]).int().tolist()
        env.close()
    assert all(map(same, runs[0], runs[1])) and all(map(same, runs[0], runs[2]))
    numbers = runs[0][0].state[:, 0]
    assert len(set(numbers.tolist())) == 5
    assert not torch.equal(numbers, play(batched(toy_parallel.countdown, copies=5), seed=3)[0].state[:, 0])


def test_a_state_is_played_again_elsewhere():
    env = batched(toy_parallel.countdown, copies=3)
    play(env, seed=1, steps=2)
    state = env.state
    turned = {name: rows.flip(0) for name, rows in state.items()}
    other = batched(toy_parallel.countdown, copies=3, workers=2)
    other.set_state(turned)
    assert torch.equal(other.last.observations, env.last.observations.flip(0))
    actions = torch.tensor([[0, 1, 2]] * 3)
    assert same([part.flip(0) for part in env.step(actions)[:-1]] + [0], other.step(actions))
    other.close()
    with pytest.raises(UserError, match="copies; allowed: 2"):
        batched(toy_parallel.countdown, copies=2).set_state(state)
    with pytest.raises(UserError, match="keys"):
        env.set_state({})


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_is_told_with_its_traceback(workers):
    env = batched(partial(toy_parallel.trouble, "raise"), copies=2, workers=workers)
    with pytest.raises(UserError, match="toy: ZeroDivisionError: the third step") as caught:
        play(env, seed=0)
    assert "third step" in str(caught.value.__cause__)
    with pytest.raises(UserError, match="toy: ValueError: no such board"):
        batched(partial(toy_parallel.trouble, "refuse"), copies=2, workers=workers)
    if workers:
        with pytest.raises(UserError, match="toy: is closed"):
            env.reset(0)


@pytest.mark.parametrize(("kind", "code"), [("exit", 7), ("kill", -9)])
def test_the_death_of_a_worker_is_an_error(kind, code):
    env = batched(partial(toy_parallel.trouble, kind), copies=2, workers=2)
    processes = list(env.pool.processes)
    with pytest.raises(UserError, match=rf"toy: a worker process died in step \(exit code {code}\)"):
        play(env, seed=0)
    assert not any(process.is_alive() for process in processes)


def test_workers_end_with_their_environment():
    env = batched(toy_parallel.countdown, copies=2, workers=2)
    processes = list(env.pool.processes)
    assert all(process.is_alive() and process.daemon for process in processes)
    del env
    gc.collect()
    assert not any(process.is_alive() for process in processes)


SCRIPT = """
import sys
import torch
sys.path.insert(0, {folder!r})
import toy_parallel
from functools import partial
from envs.workers import WorkerEnvironment
env = WorkerEnvironment("toy", "toy", partial(toy_parallel.trouble, "sleep"), 2, workers=2)
env.reset(0)
print(*(process.pid for process in env.pool.processes), flush=True)
for _ in range(4):
    env.step(torch.tensor([[0, 1, 1]] * 2))
"""


def script():
    """A program without a guard for `__main__`, whose workers sleep in the third step."""
    code = SCRIPT.format(folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def gone(pids, seconds=5.0):
    """Whether all processes end within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_no_worker_outlives_a_program():
    interrupted, killed = script(), script()
    pids = [[int(pid) for pid in program.stdout.readline().split()] for program in (interrupted, killed)]
    assert [len(workers) for workers in pids] == [2, 2]
    os.killpg(interrupted.pid, signal.SIGINT)  # as Ctrl-C does: the workers get it too
    assert "KeyboardInterrupt" in interrupted.communicate(timeout=20)[1]
    killed.kill()
    killed.communicate(timeout=20)
    assert gone(sum(pids, []))


def test_unsupported_spaces_are_refused():
    for make, line in (
        (toy_parallel.mixed, "actions: runner_0 has discrete actions, runner_1 continuous ones; allowed: one kind"),
        (partial(toy_parallel.unsupported, "tuple"), "observations: runner_0 observes a Tuple space; allowed: Box"),
        (partial(toy_parallel.unsupported, "multi-discrete actions"), "actions: runner_0 acts in MultiDiscrete([2 2])"),
        (partial(toy_parallel.unsupported, "whole-number box"), "allowed: Discrete, or Box of floating-point numbers"),
    ):
        with pytest.raises(UserError) as caught:
            batched(make)
        assert line in str(caught.value)


def test_user_errors():
    env = batched(toy_parallel.countdown, copies=2)
    for mistake, line in (
        (lambda: batched(toy_parallel.countdown, copies=0), "copies: 0; allowed: a whole number, 1 or more"),
        (lambda: batched(toy_parallel.countdown, workers=-1), "workers: -1; allowed: a whole number, 0 or more"),
        (lambda: batched(toy_parallel.countdown, limit=0), "limit: 0; allowed: a whole number, 1 or more"),
        (lambda: batched(lambda: None, copies=2, workers=2), "workers: worker processes cannot start"),
        (lambda: env.step(torch.tensor([[0, 0, 4]] * 2)), "actions: an action is out of range; allowed: 0 to 3"),
        (lambda: env.step(torch.zeros(2, 3)), "actions: shape (2, 3) of torch.float32; allowed: (2, 3)"),
    ):
        with pytest.raises(UserError) as caught:
            mistake()
        assert line in str(caught.value)


def test_default_number_of_workers():
    assert default_workers(1) == 0
    assert default_workers(100_000) == len(os.sched_getaffinity(0))


def test_random_policy_is_uniform_over_legal_actions_and_own_dimensions():
    env = batched(toy_parallel.countdown, copies=3)
    run = rollout(env, RandomPolicy(env.spec), seed=0, record=True)
    assert not run.illegal.any() and run.terminated.all() and (run.lengths == 4).all()
    policy = RandomPolicy(env.spec)
    policy.reset(0, 6000)
    masks = env.reset(0).available_actions[:1].expand(6000, -1, -1)
    actions = policy.act(torch.zeros(6000, 3, 5), masks)
    for agent, legal in enumerate(masks[0]):
        shares = torch.bincount(actions[:, agent], minlength=4) / 6000
        assert torch.allclose(shares, legal / legal.sum(), atol=0.03)
    floats = batched(toy_parallel.floats)
    policy = RandomPolicy(floats.spec)
    policy.reset(1, 5000)
    draws = policy.act(torch.zeros(5000, 2, 4), None)
    assert draws.min() < -0.99 and draws.max() > 0.99 and abs(draws.mean()) < 0.02


def test_parallel_view():
    env = batched(toy_parallel.countdown)
    view = ParallelView(env, env.layout.agents, "rgb_array")
    parallel_api_test(view, num_cycles=20)
    _, infos = view.reset(seed=0)
    assert view.agents == ["runner_0", "runner_1", "runner_2"]
    assert infos["runner_1"]["action_mask"].tolist() == [0, 1, 1] and view.action_space("runner_2").n == 4
    assert view.render().shape == (4, 6, 3)
