"""The team methods must find what random or poor data hides: fixed bars on tiny games and on 3m.

Two-step game, three agents, four actions, data from uniformly random players: who all choose 1 at first are paid 1 for
every 2 they choose afterwards, all others 0.4 for every 0; at most 1 per agent, 0.12 in the data. Choosing for the step
alone gives 0.4. Continuous game: at most 1, for actions at goals the agents see; the data's mean is below 0.5.
"""

import pytest
import torch

from madiff import collection
from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec
from tests.learn.test_smac_like import mean_return, problem, train  # noqa: F401  (a fixture)
from tests.learn.training import learnt

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
AGENTS, ACTIONS, EPISODES = 3, 4, 3000


def observe(step, rich):
    """(n, agent, 3): at the start, in the poor room or in the rich one."""
    room = torch.where(rich, 2, 1) if step else torch.zeros_like(rich, dtype=torch.int64)
    return torch.nn.functional.one_hot(room, 3).float()[:, None].expand(-1, AGENTS, -1)


def pay(actions, rich):
    return torch.where(rich[:, None], (actions == 2).float(), 0.4 * (actions == 0).float())


def two_step_data():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(ACTIONS, (2, EPISODES, AGENTS), generator=generator)
    first[: EPISODES // 10] = 1  # the way to the rich room would otherwise be one in 64
    rich = (first == 1).all(-1)
    rows = zip(
        torch.stack([observe(0, rich), observe(1, rich), observe(1, rich)], 1),
        torch.stack([first, second], 1),
        torch.stack([torch.zeros(EPISODES, AGENTS), pay(second, rich)], 1),
        strict=True,
    )
    return EpisodeStore.from_arrays(
        [{"observations": o, "actions": a, "rewards": r, "terminated": True} for o, a, r in rows], action_size=ACTIONS
    )  # fmt: skip


def continuous_data():
    """One step; each agent sees where it should go, a point of its own in [-0.5, 0.5]."""
    generator = torch.Generator().manual_seed(0)
    goals = torch.rand(EPISODES, AGENTS, 1, generator=generator) - 0.5
    actions = 2 * torch.rand(EPISODES, AGENTS, 1, generator=generator) - 1
    rewards = worth(actions, goals)[:, None].expand(-1, AGENTS)
    rows = zip(goals, actions, rewards, strict=True)
    return EpisodeStore.from_arrays(
        [{"observations": g[None].repeat(2, 1, 1), "actions": a[None], "rewards": r[None], "terminated": True}
         for g, a, r in rows]
    )  # fmt: skip


def worth(actions, goals):
    """(n,) 1 - mean squared distance to the goals, and from the mean action to the mean goal."""
    gap = (actions - goals)[..., 0]
    return 1 - gap.square().mean(-1) - gap.mean(-1).square()


def play_two_steps(policy, n=50):
    policy.reset(seed=0, n=n)
    rich = torch.zeros(n, dtype=torch.bool)
    rich = (policy.act(observe(0, rich), None) == 1).all(-1)
    if hasattr(policy, "receive"):
        policy.receive(torch.zeros(n, AGENTS))
    return float(pay(policy.act(observe(1, rich), None), rich).mean())


@pytest.mark.parametrize("algo, options", [
    ("qmix", {"sequence": 1}), ("qmix", {"recurrent": True, "sequence": 2}), ("qmix-cql", {}), ("cfcql", {}),
    ("cfcql", {"share_temperature": 1.0}), ("ma-icq", {"sequence": 2}), ("omiga", {}), ("madt", {"context": 2}),
])  # fmt: skip
def test_finds_the_way_to_the_rich_room(algo, options):
    spec = EnvironmentSpec("rooms", "rooms", AGENTS, 3, ACTIONS, True, 0, 2)
    data = two_step_data()
    assert float(data.team_returns().mean()) < 0.2
    assert play_two_steps(learnt(algo, spec, data, 600, **options).policy()) >= 0.95


@pytest.mark.parametrize("algo, options", [
    ("cfcql", {}), ("cfcql", {"share_temperature": -1.0}), ("ma-icq", {"sequence": 1}), ("omiga", {}),
])  # fmt: skip
def test_finds_the_hidden_actions(algo, options):
    spec = EnvironmentSpec("goals", "goals", AGENTS, 1, 1, False, 0, 1)
    data = continuous_data()
    assert float(data.team_returns().mean()) < 0.5
    policy, goals = learnt(algo, spec, data, 1000, **options).policy(), torch.rand(200, AGENTS, 1) - 0.5
    policy.reset(seed=0, n=200)
    assert float(worth(policy.act(goals, None), goals).mean()) >= 0.95


@pytest.fixture(scope="module")
def poor(problem):  # noqa: F811
    return collection.collect("smac-like", problem.options, "poor", 2000, seed=0, progress=False)


@pytest.mark.parametrize("algo, bar", [("qmix-cql", 15), ("cfcql", 15), ("ma-icq", 15), ("omiga", 14), ("madt", 13)])
def test_far_exceeds_poor_data(problem, poor, algo, bar):  # noqa: F811
    assert float(poor.team_returns().mean()) < 5
    assert mean_return(problem, train(algo, problem, poor, 1500)) >= bar
