"""MADiff: what a plan is told, what it must not know, and the identities of the paper."""

import copy
import dataclasses

import pytest
import torch

import envs
from madiff.data.store import EpisodeStore
from madiff.experiment.rollout import rollout
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.planners import madiff_c, madiff_d
from madiff.planners.madiff import MADiff
from madiff.planners.preprocessing import Preprocessing

CPU = torch.device("cpu")
SMALL = {"width": 16, "layers": 1, "heads": 2, "inverse_width": 16, "batch_size": 8, "ema_start": 0, "ema_every": 1}


def spec(agents: int = 3, discrete: bool = True) -> EnvironmentSpec:
    return EnvironmentSpec("toy", "toy", agents, 4, 5, discrete, 0, 12)


def learner(room, agents: int = 3, discrete: bool = True, **options) -> MADiff:
    method = MADiff(room.Config(**{**SMALL, **options}), spec(agents, discrete), CPU, seed=0)
    with torch.no_grad():  # fresh networks may start as zero; random weights make every dependence visible
        generator = torch.Generator().manual_seed(0)
        for parameter in method.networks.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.02))
    method.ema.model.load_state_dict(method.networks.state_dict())
    method.batches(store(agents, discrete))
    return method


def store(agents: int = 3, discrete: bool = True, episodes: int = 6) -> EpisodeStore:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in range(3, 3 + episodes):
        actions = torch.randint(5, (length, agents), generator=generator)
        masks = torch.rand(length + 1, agents, 5, generator=generator) < 0.7
        masks[:-1].scatter_(-1, actions[..., None], True)
        if not discrete:
            actions = torch.rand(length, agents, 5, generator=generator) * 2 - 1
        rows.append({
            "observations": torch.rand(length + 1, agents, 4, generator=generator),
            "actions": actions,
            "rewards": torch.rand(length, agents, generator=generator),
            "terminated": True,
            "truncated": False,
        } | ({"available_actions": masks} if discrete else {}))  # fmt: skip
    return EpisodeStore.from_arrays(rows)


@pytest.mark.parametrize("now", [0, 2])
def test_condition_against_brute_force(now):
    preprocessing = Preprocessing(spec(), "cdf")
    x = torch.randn(2, now + 4, 3, preprocessing.features)
    visible = torch.tensor([[True, False, True], [False, True, False]])
    value, mask = preprocessing.condition(x, visible, now)
    for b in range(2):
        for t in range(now + 4):
            for a in range(3):
                for f in range(preprocessing.features):
                    identity, seen = f < 3, bool(visible[b, a])
                    known = identity or (t <= now if seen else t < now)
                    assert mask.expand_as(x)[b, t, a, f] == float(known)
                    if known:
                        assert value[b, t, a, f] == (x[b, t, a, f] if identity or seen else 0.0)


@pytest.fixture
def problem_on_3m():
    env = envs.make_batched("smac-like", copies=2, scenario="3m")
    method = MADiff(madiff_d.Config(**SMALL), env.spec, CPU, seed=0)
    random = envs.behaviour(env, "random")
    method.batches(rollout(env, random, seed=0, record=True).store)
    return method.policy(), env


def actions_of(method: MADiff, observations: torch.Tensor, steps: int = 2) -> torch.Tensor:
    policy = method.policy()
    policy.reset(seed=3, n=observations.shape[0])
    for _ in range(steps):
        output = policy.act(observations, None)
    return output


def test_decentralised_agent_ignores_what_it_cannot_see():
    method = learner(madiff_d, discrete=False)
    base = torch.rand(5, 3, 4)
    changed = base.clone()
    changed[:, 1:] = torch.rand(5, 2, 4)
    assert torch.equal(actions_of(method, base)[:, 0], actions_of(method, changed)[:, 0])
    assert not torch.allclose(actions_of(method, base)[:, 1], actions_of(method, changed)[:, 1])


def test_centralised_agent_uses_its_teammates():
    method = learner(madiff_c, discrete=False)
    base = torch.rand(5, 3, 4)
    changed = base.clone()
    changed[:, 1:] = torch.rand(5, 2, 4)
    assert not torch.allclose(actions_of(method, base)[:, 0], actions_of(method, changed)[:, 0])


def test_without_agent_attention_a_plan_ignores_teammates():
    method = learner(madiff_c, discrete=False, agent_attention=False)
    base = torch.rand(5, 3, 4)
    changed = base.clone()
    changed[:, 1:] = torch.rand(5, 2, 4)
    assert torch.allclose(actions_of(method, base)[:, 0], actions_of(method, changed)[:, 0], atol=1e-6)


def test_one_agent_centralised_equals_decentralised():
    c, d = learner(madiff_c, agents=1, discrete=False), learner(madiff_d, agents=1, discrete=False)
    observations = torch.rand(4, 1, 4)
    assert torch.equal(actions_of(c, observations), actions_of(d, observations))


def test_plan_keeps_what_is_known():
    policy = learner(madiff_d).policy()
    policy.reset(seed=0, n=2)
    history = policy.preprocessing.encode(torch.rand(2, policy.config.history + 1, 3, 4))
    noise = torch.randn(2, policy.config.history + 1 + policy.config.horizon, 3, 7)
    plan = policy.plan(history, torch.tensor([0, 2]), noise, torch.ones(2, 3))
    now = policy.config.history
    assert torch.equal(plan[0, : now + 1, 0], history[0, :, 0])
    assert torch.equal(plan[1, : now + 1, 2], history[1, :, 2])
    assert torch.equal(plan[..., :3], torch.eye(3).expand(2, plan.shape[1], 3, 3))
    assert (plan[0, :now, 1:, 3:] == 0).all()
    assert not torch.allclose(plan[0, now, 1, 3:], history[0, now, 1, 3:])


def test_legal_actions_only_and_dead_agents_are_not_planned_for():
    method = learner(madiff_d)
    policy = method.policy()
    policy.reset(seed=0, n=40)
    masks = torch.rand(40, 3, 5) < 0.4
    masks[..., 2] = True
    chosen = policy.act(torch.rand(40, 3, 4), masks)
    assert masks.gather(-1, chosen[..., None]).all()
    only_stop = torch.zeros(40, 3, 5, dtype=torch.bool)
    only_stop[..., 1] = True
    policy.plan = None  # any planning now would fail
    assert (policy.act(torch.rand(40, 3, 4), only_stop) == 1).all()


def test_a_battle_s_plan_does_not_depend_on_which_others_still_run():
    method = learner(madiff_d, discrete=False)
    observations, active = torch.rand(6, 3, 4), torch.tensor([1, 0, 1, 0, 0, 1]).bool()
    one, other = method.policy(), method.policy()
    one.reset(seed=1, n=6)
    other.reset(seed=1, n=6)
    all_running = one.act(observations, None)
    some_running = other.act(observations, None, active)
    assert torch.allclose(all_running[active], some_running[active], atol=1e-5)


def test_common_noise_is_shared_by_the_agents_of_a_battle():
    assert learner(madiff_d).policy().config.common_noise
    for common, copies in ((True, 1), (False, 3)):
        policy = learner(madiff_d, common_noise=common).policy()
        policy.reset(seed=0, n=2)
        policy._draw_noise()
        assert policy.noise.shape[:2] == (2, copies)


def test_padded_steps_carry_no_loss():
    method = learner(madiff_c)
    source = method.batches(store())
    batch = source.sample(torch.Generator().manual_seed(0))
    batch["valid"] = torch.zeros_like(batch["valid"])
    batch["transition_valid"] = torch.zeros_like(batch["transition_valid"])
    assert method.update(batch, torch.Generator().manual_seed(0))["loss"] == 0


@pytest.mark.parametrize("sharing", ["shared", "independent", "joint"])
@pytest.mark.parametrize("discrete", [True, False])
def test_updates_lower_the_loss_in_every_mode(sharing, discrete):
    method = learner(madiff_d, discrete=discrete, inverse_dynamics=sharing, learning_rate=3e-3)
    source = method.batches(store(discrete=discrete))
    generator = torch.Generator().manual_seed(0)
    losses = [float(method.update(source.sample(generator), generator)["loss"]) for _ in range(150)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_state_round_trip_continues_bit_for_bit():
    first, second = learner(madiff_d), MADiff(madiff_d.Config(**SMALL), spec(), CPU, seed=9)
    source = first.batches(store())
    second.batches(store())
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        first.update(source.sample(generator), generator)
    second.load_weights(first.weights())
    second.load_training_state(copy.deepcopy(first.training_state()))
    batch = source.sample(torch.Generator().manual_seed(7))
    a = first.update(batch, torch.Generator().manual_seed(8))
    b = second.update(batch, torch.Generator().manual_seed(8))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(torch.equal(x, y) for x, y in zip(first.weights().values(), second.weights().values(), strict=True))


def test_return_labels():
    data = store()
    labels = {}
    for label in ("to-go", "episode"):
        method = learner(madiff_c, return_label=label)
        batch = method.batches(data).sample(torch.Generator().manual_seed(0))
        labels[label] = method.return_label(batch)
        assert float(method.preprocessing.returns_scale) == pytest.approx(float(data.returns().max()))
    assert torch.allclose(labels["episode"], data.returns()[batch["episode"]])
    assert (labels["to-go"] <= labels["episode"] + 1e-5).all() and not torch.equal(labels["to-go"], labels["episode"])


@pytest.mark.parametrize(
    "options",
    [{"network": "cnn"}, {"horizon": 0}, {"history": -1}, {"inverse_dynamics": "none"},
     {"network": "unet", "horizon": 3, "history": 1}, {"heads": 3}],
)  # fmt: skip
def test_impossible_options_are_a_users_error(options):
    with pytest.raises(UserError, match="algo"):
        MADiff(dataclasses.replace(madiff_d.Config(**SMALL), **options), spec(), CPU, seed=0)


def test_the_return_asked_for_falls_by_what_was_paid():
    policy = learner(madiff_c, discount=0.5).policy()
    policy.reset(seed=0, n=2)
    scale = float(policy.preprocessing.returns_scale)
    policy.receive(torch.tensor([[0.25, 0.0, 0.0], [9.0, 0.0, 0.0]]) * scale)
    assert torch.allclose(policy.target, torch.tensor([[1.5, 2.0, 2.0], [0.0, 2.0, 2.0]]))
    for options in ({"track_return": False}, {"return_label": "episode"}):
        policy = learner(madiff_c, **options).policy()
        policy.reset(seed=0, n=2)
        policy.receive(torch.ones(2, 3))
        assert (policy.target == 1).all()


def test_a_rollout_tells_the_policy_its_rewards(problem_on_3m):
    policy, env = problem_on_3m
    told, receive = [], policy.receive
    policy.receive = lambda rewards: (told.append(rewards), receive(rewards))
    run = rollout(env, policy, seed=0)
    assert len(told) == run.lengths.max()
    assert torch.allclose(torch.stack(told).sum(0).mean(1).double(), torch.as_tensor(run.returns), atol=1e-4)


def test_another_ego_is_never_the_same_and_every_other_as_likely():
    method, generator = learner(madiff_d, agents=4, agreement=1.0), torch.Generator().manual_seed(0)
    visible = method.visible(6000, generator)
    other = method.another(visible, generator)
    assert (other.sum(-1) == 1).all() and not (other & visible).any()
    for ego in range(4):
        counts = other[visible[:, ego]].float().mean(0)
        assert torch.allclose(counts[torch.arange(4) != ego], torch.tensor(1 / 3), atol=0.05)


@pytest.mark.parametrize(("room", "agents"), [(madiff_c, 3), (madiff_d, 1)])
def test_agreement_needs_agents_that_plan_apart(room, agents):
    with pytest.raises(UserError, match=r"algo\.agreement"):
        MADiff(room.Config(**SMALL, agreement=1.0), spec(agents), CPU, seed=0)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 4, 20])
def test_the_inverse_dynamics_takes_a_step_for_each_part_of_the_batch(steps, discrete):
    free = {"gradient_clip": 1e9, "learning_rate": 1e-2}
    ours, plain = (learner(madiff_c, discrete=discrete, inverse_steps=n, **free) for n in (steps, 1))
    theirs = copy.deepcopy(plain.networks["inverse"])
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    source = ours.batches(store(discrete=discrete))
    for update in range(2):
        batch = source.sample(torch.Generator().manual_seed(update))
        told, losses = ours.update(batch, torch.Generator().manual_seed(9)), []
        plain.update(batch, torch.Generator().manual_seed(9))
        for rows in torch.arange(8).chunk(steps):
            x, actions, valid = (batch[name][rows] for name in ("observations", "actions", "transition_valid"))
            output, errors = theirs(x[:, :-1], x[:, 1:]), []
            for b, t in valid.nonzero().tolist():
                for agent in range(3):
                    if discrete:
                        legal = output[b, t, agent].masked_fill(~batch["available_actions"][rows][b, t, agent], -1e9)
                        errors.append(-legal.log_softmax(-1)[actions[b, t, agent]])
                    else:
                        errors.append((output[b, t, agent].tanh() - actions[b, t, agent]).square().mean())
            optimizer.zero_grad()
            (0.5 * torch.stack(errors).mean()).backward()
            losses.append(torch.stack(errors).mean().item())
            optimizer.step()
        assert float(told["inverse_loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert float(told["loss"]) == pytest.approx(float(told["diffusion_loss"] + told["inverse_loss"]) / 2)
    for found, expected in zip(ours.networks["inverse"].parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    ours, plain = (one.networks["denoiser"].state_dict() for one in (ours, plain))
    assert all(torch.equal(ours[name], plain[name]) for name in ours)
