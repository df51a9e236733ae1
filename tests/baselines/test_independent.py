"""MA-TD3+BC, MA-CQL and OMAR: losses against loops, the searches against brute force, state, refusals."""

import copy
import math

import pytest
import torch

from baselines import ma_cql, ma_td3_bc, omar
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.values import Transitions
from tests.planners.test_madiff import store

CPU = torch.device("cpu")
SMALL = {"width": 16, "batch_size": 32}
PART = {"conservative_batch": 32}
PARTS = PART | {"search_batch": 8}
METHODS = [(ma_td3_bc, False, {}), (ma_cql, False, PART), (ma_cql, True, PART), (omar, False, PARTS)]


def learner(module, discrete: bool = False, sizes: tuple[int, ...] = (), **options):
    spec = EnvironmentSpec("toy", "toy", 3, 4, 5, discrete, 0, 12, action_sizes=sizes)
    return module.make(module.Config(**{**SMALL, **options}), spec, CPU, 0)


def steps_of(method, discrete: bool = False) -> Transitions:
    """A batch, after some updates that make slow copies differ from what they follow."""
    source, generator = method.batches(store(discrete=discrete)), torch.Generator().manual_seed(0)
    for _ in range(5):
        method.update(source.sample(generator), generator)
    return Transitions.of(source.sample(generator), method.scale)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def act(network: torch.nn.Module, observation: torch.Tensor) -> torch.Tensor:
    """The deterministic action at one observation."""
    return torch.tanh(network.last(network.first(observation)))


@torch.no_grad()
def td_target(method, steps: Transitions, row: int, agent: int, action: torch.Tensor) -> float:
    following = method.targets["critic"].model(steps.next_observations[row, agent], action)
    ended = bool(steps.terminated[row])
    return float(steps.rewards[row, agent]) + (0.0 if ended else method.config.discount * float(following.min()))


def test_td3_bc_losses_against_loops():
    method = learner(ma_td3_bc, noise=0.3, noise_clip=0.2, discount=0.9)
    steps = steps_of(method)
    assert steps.terminated.any() and not steps.terminated.all()
    noise = (0.3 * torch.randn(32, 3, 5, generator=generator())).clamp(-0.2, 0.2)
    errors, values, distances = [], [], []
    with torch.no_grad():
        for b in range(32):
            for agent in range(3):
                following = act(method.targets["actor"].model, steps.next_observations[b, agent])
                y = td_target(method, steps, b, agent, (following + noise[b, agent]).clamp(-1, 1))
                for q in method.critic(steps.observations[b, agent], steps.actions[b, agent]):
                    errors.append((float(q) - y) ** 2)
                mine = act(method.actor, steps.observations[b, agent])
                values.append(float(method.critic(steps.observations[b, agent], mine)[0]))
                distances += (mine - steps.actions[b, agent]).square().tolist()
        assert float(method.critic_loss(steps, generator())) == pytest.approx(sum(errors) / 96, rel=1e-4)
        expected = sum(distances) / len(distances) - 2.5 * sum(values) / sum(map(abs, values))
        assert float(method.actor_loss(steps)) == pytest.approx(expected, rel=1e-4)


def test_td3_bc_moves_its_actor_at_every_second_update():
    method = learner(ma_td3_bc, actor_every=2)
    source, moved = method.batches(store(discrete=False)), []
    for seed in range(4):
        before = method.actor.last[0].weight.clone()
        method.update(source.sample(generator(seed)), generator(seed))
        moved.append(not torch.equal(before, method.actor.last[0].weight))
    assert moved == [True, False, True, False]


@pytest.mark.parametrize("sizes", [(), (5, 2, 4)])
def test_continuous_cql_losses_against_loops(sizes):
    method = learner(ma_cql, sizes=sizes, conservative_batch=4, conservative_samples=6, action_penalty=0.3)
    steps = steps_of(method)
    own = sizes or (5, 5, 5)
    real = torch.arange(5) < torch.tensor(own)[:, None]
    uniform = (2 * torch.rand(6, 4, 3, 5, generator=generator()) - 1) * real
    errors, penalties, values, sizes_of_actions = [], [], [], []
    with torch.no_grad():
        for b in range(32):
            for agent in range(3):
                observation, done = steps.observations[b, agent], steps.actions[b, agent]
                following = act(method.targets["actor"].model, steps.next_observations[b, agent]) * real[agent]
                y = td_target(method, steps, b, agent, following)
                data = method.critic(observation, done)
                errors += [(float(q) - y) ** 2 for q in data]
                mine = act(method.actor, observation) * real[agent]
                values.append(float(method.critic(observation, mine)[0]))
                sizes_of_actions += mine.square().tolist()
                if b >= 4:
                    continue
                others = [method.critic(observation, uniform[k, b, agent]).tolist() for k in range(6)]
                for j in range(2):
                    integral = sum(math.exp(q[j]) * 2.0 ** own[agent] for q in others) / 6
                    penalties.append(math.log(integral) - float(data[j]))
        td, penalty = method.critic_losses(steps, generator())
        assert float(td) == pytest.approx(sum(errors) / 96, rel=1e-4)
        assert float(penalty) == pytest.approx(sum(penalties) / 12, rel=1e-4)
        expected = 0.3 * sum(sizes_of_actions) / len(sizes_of_actions) - sum(values) / 96
        assert float(method.actor_loss(steps, generator())) == pytest.approx(expected, rel=1e-4)


def test_discrete_cql_losses_against_loops():
    method = learner(ma_cql, True, **PART)
    steps = steps_of(method, True)
    errors, penalties = [], []
    with torch.no_grad():
        for b in range(32):
            for agent in range(3):
                legal = [a for a in range(5) if steps.next_available[b, agent, a]] or list(range(5))
                judge = method.target.model(steps.next_observations[b, agent])
                online = method.critic(steps.next_observations[b, agent])
                best = max(legal, key=lambda a: float(min(online[0, a], online[1, a])))
                future = 0.0 if steps.terminated[b] else 0.95 * float(judge[:, best].min())
                for q in method.critic(steps.observations[b, agent]):
                    data = float(q[steps.actions[b, agent]])
                    errors.append((data - float(steps.rewards[b, agent]) - future) ** 2)
                    allowed = [float(q[a]) for a in range(5) if steps.available[b, agent, a]]
                    penalties.append(math.log(sum(map(math.exp, allowed))) - data)
        td, penalty = method.losses(steps)
    assert float(td) == pytest.approx(sum(errors) / 96, rel=1e-4)
    assert float(penalty) == pytest.approx(sum(penalties) / 96, rel=1e-4)


def test_discrete_cql_takes_the_best_legal_action_of_the_lesser_critic():
    method = learner(ma_cql, True, **PART)
    steps_of(method, True)
    policy = method.policy()
    policy.reset(seed=0, n=30)
    observations = torch.rand(30, 3, 4)
    masks = (torch.rand(30, 3, 5) < 0.5).index_fill(-1, torch.tensor([2]), True)
    actions, values = policy.act(observations, masks), method.target.model(method.encoder.encode(observations))
    for b in range(30):
        for agent in range(3):
            legal = masks[b, agent].nonzero()[:, 0].tolist()
            lesser = {a: min(values[:, b, agent, a].tolist()) for a in legal}
            assert int(actions[b, agent]) == max(lesser, key=lesser.get)


def test_soft_search_against_a_loop_over_dimensions():
    """Three rounds for one observation, number by number."""
    target = torch.tensor([0.3, -0.8])
    noise = torch.randn(3, 10, 2, generator=generator())
    rounds = iter(noise)

    def value(candidates):
        return -3 * (candidates - target).square().sum(-1)

    def draw(mean, deviation, samples):
        return (mean + deviation * next(rounds)).clamp(-1, 1)

    found = omar.soft_search(value, draw, torch.zeros(2), torch.full((2,), 2.0), 3, 10)
    mean, deviation = [0.0, 0.0], [2.0, 2.0]
    for z in noise:
        actions = [[min(1, max(-1, mean[d] + deviation[d] * float(row[d]))) for d in range(2)] for row in z]
        odds = [math.exp(-3 * sum((a[d] - float(target[d])) ** 2 for d in range(2))) for a in actions]
        mean = [sum(o * a[d] for o, a in zip(odds, actions, strict=True)) / sum(odds) for d in range(2)]
        deviation = [math.sqrt(sum((a[d] - mean[d]) ** 2 for a in actions) / 10) for d in range(2)]
    assert torch.allclose(found, torch.tensor(actions), atol=1e-5)


def test_elite_search_keeps_the_best_of_all_rounds_and_narrows_in():
    peak, seen = torch.tensor([[0.2, -0.4], [-0.6, 0.9]]), []
    source = generator()

    def value(candidates):
        return -(candidates - peak).square().sum(-1)

    def draw(mean, deviation, samples):
        seen.append((mean + deviation * torch.randn(samples, 2, 2, generator=source)).clamp(-1, 1))
        return seen[-1]

    kept = omar.elite_search(value, draw, torch.zeros(2, 2), torch.full((2, 2), 2.0), 4, 20, 5)
    everything = torch.cat(seen)
    for row in range(2):
        best = sorted(everything[:, row].tolist(), key=lambda a: -float(value(torch.tensor(a).expand(2, 2))[row]))
        assert torch.allclose(kept[:, row], torch.tensor(best[:5]))
    assert seen[-1].std(0).max() < 0.5 * seen[0].std(0).min()


@pytest.mark.parametrize("search", ["gaussian", "elites"])
def test_the_action_found_is_never_worse_than_the_actors(search):
    method = learner(omar, search=search, sizes=(5, 2, 3), **PARTS)
    steps = steps_of(method)
    actions = method.actions(method.actor, steps.observations).detach()
    found = method.found(steps.observations, actions, generator())
    before, after = (method.value(steps.observations, given).detach() for given in (actions, found))
    assert (after >= before - 1e-6).all() and float((after > before + 1e-3).float().mean()) > 0.5
    assert not found[:, 1, 2:].any() and not found[:, 2, 3:].any()


def test_omar_loss_is_made_of_its_three_terms():
    method = learner(omar, imitation=0.7, action_penalty=0.2, **PARTS)
    steps = steps_of(method)
    with torch.no_grad():
        actions = method.actions(method.actor, steps.observations)
        found = method.found(steps.observations[:8], actions[:8], generator())
        value = method.critic(steps.observations, actions)[0].mean()
        expected = 0.7 * (actions[:8] - found).square().mean() - 0.3 * value + 0.2 * actions.square().mean()
        assert float(method.actor_loss(steps, generator())) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(("module", "discrete", "options"), METHODS)
def test_a_resumed_learner_continues_and_acts_alike(module, discrete, options):
    first, second = learner(module, discrete, **options), learner(module, discrete, **options)
    steps_of(first, discrete)
    second.load_weights({name: value.clone() for name, value in first.weights().items()})
    second.load_training_state(copy.deepcopy(first.training_state()))
    source = first.batches(store(discrete=discrete))
    for seed in range(3):
        for method in (first, second):
            method.update(source.sample(generator(seed)), generator(seed))
    assert all(torch.equal(value, second.weights()[name]) for name, value in first.weights().items())
    policy = second.policy()
    policy.reset(seed=0, n=4)
    actions = policy.act(torch.rand(4, 3, 4), None)
    assert actions.shape == ((4, 3) if discrete else (4, 3, 5))


@pytest.mark.parametrize("module", [ma_td3_bc, omar])
def test_discrete_actions_are_refused(module):
    with pytest.raises(UserError, match="discrete actions"):
        learner(module, True, **(PARTS if module is omar else {}))


@pytest.mark.parametrize(
    ("module", "options"),
    [(ma_cql, {"conservative_batch": 33}), (omar, PART | {"search_batch": 33}), (omar, PARTS | {"elites": 11})],
)
def test_parts_larger_than_the_whole_are_refused(module, options):
    with pytest.raises(UserError, match=f"algo.{list(options)[-1]}"):
        learner(module, **options)
