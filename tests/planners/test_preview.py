"""Following a plan by looking ahead: the gain against a solver, tracking against the controller that does not look."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from madiff.data import EpisodeStore
from madiff.data.motion import AffineMotion
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.planners.preview import EFFORT, SPEED, Preview

TAU, DRAG, PUSH, WIND = 0.1, 0.9, 2.0, 0.05
NAMES = ("x", "y", "vx", "vy", "clock")


def spec(agents=1, action_size=2):
    return EnvironmentSpec("toy", "", agents, len(NAMES), action_size, False, 0, 50, {}, observation_names=NAMES)


def step(state, action):
    """A mass with drag and wind, pushed with a strength that is the axis's own; a number that has no part in it."""
    place, speed = state[..., :2], state[..., 2:4]
    after = DRAG * speed + action * torch.tensor([PUSH, PUSH / 2]) + WIND
    return torch.cat([place + TAU * (speed + after) / 2, after, state[..., 4:] * 0.5], dim=-1)


def measured(agents=1):
    """The motion as it is learnt from random play."""
    torch.manual_seed(0)
    actions = 2 * torch.rand(40, 20, agents, 2) - 1
    observations = [torch.randn(40, agents, len(NAMES))]
    for t in range(20):
        observations.append(step(observations[-1], actions[:, t]))
    episodes = [
        {
            "observations": torch.stack(observations, 1)[i].numpy(), "actions": actions[i].numpy(),
            "rewards": np.zeros((20, agents), np.float32), "terminated": False,
        }
        for i in range(40)
    ]  # fmt: skip
    motion = AffineMotion(spec(agents))
    return motion.fit(EpisodeStore.from_arrays(episodes))


def best(state, places, speeds):
    """The first action of the same least-squares problem, written out step by step and solved by scipy."""
    steps, moved = len(places), TAU * (1 + DRAG) / 2  # a step moves a place so far for a unit of velocity

    def led(actions):
        now, found = state, []
        for action in actions:
            now = step(now, action)
            found.append(torch.cat([now[:2], SPEED**0.5 * moved * now[2:4]]))
        return torch.cat(found)

    nothing = torch.zeros(steps, 2, dtype=torch.float64)
    still = led(nothing)
    unit = torch.eye(2 * steps, dtype=torch.float64).view(-1, steps, 2)
    columns = torch.stack([led(one) - still for one in unit], dim=1)
    wanted = torch.cat([places, SPEED**0.5 * moved * speeds], dim=-1).flatten() - still
    effort = (EFFORT * columns.square().sum(0).mean()).sqrt() * torch.eye(2 * steps, dtype=torch.float64)
    system, target = torch.cat([columns, effort]), torch.cat([wanted, torch.zeros(2 * steps, dtype=torch.float64)])
    return torch.from_numpy(lsq_linear(system.numpy(), target.numpy()).x[:2])


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_the_action_is_that_of_a_least_squares_solver(steps):
    follow = Preview(measured(agents=2), (0, 1), (2, 3), steps)
    torch.manual_seed(1)
    states, places, speeds = torch.randn(3, 2, 5), 0.1 * torch.randn(3, steps, 2, 2), torch.randn(3, steps, 2, 2)
    places = places + states[:, None, :, :2]
    actions = follow.action(states, places, speeds)
    for b in range(3):
        for agent in range(2):
            given = states[b, agent], places[b, :, agent], speeds[b, :, agent]
            wanted = best(*(tensor.double() for tensor in given)).clamp(-1, 1)
            torch.testing.assert_close(actions[b, agent].double(), wanted, rtol=1e-3, atol=1e-3)


def circle(t):
    """A way that always bends: places and velocities at steps t, one metre round in 20 steps."""
    angle = 2 * torch.pi * t / 20
    place = 0.5 * torch.stack([angle.cos(), angle.sin()], -1)
    speed = 0.5 * 2 * torch.pi / (20 * TAU) * torch.stack([-angle.sin(), angle.cos()], -1)
    return place, speed


def followed(act):
    """Root mean square distance from the circle over two rounds, from a start on it."""
    place, speed = circle(torch.zeros(()))
    state, missed = torch.cat([place, speed, torch.zeros(1)])[None, None], []
    for t in range(40):
        state = step(state, act(t, state))
        missed.append((state[0, 0, :2] - circle(torch.tensor(t + 1.0))[0]).square().sum())
    return torch.stack(missed).mean().sqrt()


def test_it_stays_on_a_bend_where_a_controller_that_does_not_look_ahead_leaves_it():
    follow = Preview(measured(), (0, 1), (2, 3), 6)

    def looking(t, state):
        places, speeds = circle(t + 1.0 + torch.arange(6))
        return follow.action(state, places[None, :, None], speeds[None, :, None])

    def late(t, state):
        (place, _), (_, speed) = circle(torch.tensor(float(t))), circle(torch.tensor(t + 1.0))
        return (2.0 * (place - state[..., :2]) + 0.42 * (speed - state[..., 2:4])).clamp(-1, 1)

    assert followed(looking) < 0.005 < 0.02 < followed(late)


def test_what_cannot_be_followed_is_a_users_error():
    with pytest.raises(UserError, match="measured no motion"):
        Preview(AffineMotion(spec()), (0, 1), (2, 3), 6)
    motion = measured()
    with pytest.raises(UserError, match="actions move nothing"):
        Preview(motion, (4,), (4,), 6)
