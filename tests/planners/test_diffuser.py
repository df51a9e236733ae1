"""Diffuser: what a plan holds, what it is told, and what becomes of it."""

import copy

import pytest
import torch

from madiff.data.store import EpisodeStore
from madiff.diffusion.sampler import Hook
from madiff.interfaces import CostAware, EnvironmentSpec, RewardAware, UserError
from madiff.planners import diffuser, madiff_c
from madiff.planners.diffuser import Config, Diffuser
from madiff.planners.diffuser_encoding import PlanEncoder
from madiff.planners.madiff import MADiff
from madiff.values.plan_values import PlanValueConfig

CPU = torch.device("cpu")
NAMES = ("x", "y", "vx", "vy", "goal_x", "goal_y")
SMALL = {
    "width": 16, "multipliers": (1, 2), "horizon": 8, "batch_size": 8, "inverse_width": 16, "ema_start": 0,
    "ema_every": 1, "diffusion_steps": 20, "sampler_steps": 4,
    "values": PlanValueConfig(width=8, multipliers=(1, 2)),
}  # fmt: skip


def spec(agents=1, discrete=False, names=NAMES) -> EnvironmentSpec:
    return EnvironmentSpec("toy", "toy", agents, 6, 3 if discrete else 2, discrete, 0, 40, observation_names=names)


def store(agents=1, discrete=False, episodes=12) -> EpisodeStore:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in range(4, 4 + episodes):
        actions = 2 * torch.rand(length, agents, 2, generator=generator) - 1
        row = {
            "observations": 4 * torch.rand(length + 1, agents, 6, generator=generator) - 2,
            "actions": torch.randint(3, (length, agents), generator=generator) if discrete else actions,
            "rewards": torch.rand(length, agents, generator=generator),
            "costs": (torch.rand(length, agents, generator=generator) < 0.5).float(),
            "terminated": True,
        }
        if discrete:
            row["available_actions"] = torch.ones(length + 1, agents, 3, dtype=torch.bool)
        rows.append(row)
    return EpisodeStore.from_arrays(rows, action_size=3 if discrete else 2)


def steady(discrete=False) -> EpisodeStore:
    """Points that keep their velocity, which is also their action: the present says all of the future."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(40):
        start, velocity = 2 * torch.rand(2, 1, 2, generator=generator) - 1
        path = start + 0.1 * torch.arange(13)[:, None, None] * velocity
        still = torch.cat([velocity, velocity], dim=-1).expand(13, -1, -1)
        actions = velocity.expand(12, -1, -1)
        rows.append({
            "observations": torch.cat([path, still], dim=-1), "rewards": torch.ones(12, 1), "terminated": True,
            "actions": (actions[..., 0] > 0).long() if discrete else actions,
        })  # fmt: skip
    return EpisodeStore.from_arrays(rows, action_size=3 if discrete else 2)


def learner(agents=1, discrete=False, **options) -> Diffuser:
    method = Diffuser(Config(**{**SMALL, **options}), spec(agents, discrete), CPU, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # fresh networks may start as zero; random weights make every dependence visible
        for parameter in method.networks.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.02))
    method.ema.model.load_state_dict(method.networks.state_dict())
    method.batches(store(agents, discrete))
    return method


def planned(policy, observations, **told):
    seen = []
    policy.watch = lambda shown: seen.append(shown.plans)
    policy.reset(seed=1, n=len(observations))
    for name, value in told.items():
        setattr(policy, name, value)
    action = policy.act(observations, None)
    return action, torch.cat(seen)


def states(n=5, agents=1, seed=3):
    return 4 * torch.rand(n, agents, 6, generator=torch.Generator().manual_seed(seed)) - 2


# what a plan holds


@pytest.mark.parametrize("discrete", [True, False])
def test_training_plans_are_the_data_s_own_actions_and_observations(discrete):
    method, data = learner(2, discrete), store(2, discrete)
    source = method.batches(data)
    batch = source.gather(torch.tensor([0, 30, 71]))
    x, mask = method.plans(batch, torch.Generator())
    assert x.shape == (3, 8, 2, method.plan_features)
    first = int(data.offsets[data.episode_of[30]])
    e = int(data.episode_of[30])
    for k in range(int(data.lengths[e]) - (30 - first)):
        row = 30 + k
        if k == 8:
            break
        decoded = method.preprocessing.decode(method.preprocessing.observations(x[1, k]))
        assert torch.allclose(decoded, data.observations[row + e], atol=1e-5)
        actions = method.preprocessing.actions(x[1, k])
        expected = 2 * torch.nn.functional.one_hot(data.actions[row], 3) - 1 if discrete else data.actions[row]
        assert torch.equal(actions, expected.float())
    identities = x[..., method.spec.action_size : method.spec.action_size + 2]
    assert torch.equal(identities, torch.eye(2).expand_as(identities))


def test_what_is_known_against_a_loop():
    encoder = PlanEncoder(spec(2), "limits", ("x", "y"), ("goal_x", "goal_y"))
    encoder.fit(store(2))
    plan = torch.randn(3, 5, 2, encoder.plan_features)
    goals = torch.randn(3, 2, 2)
    value, mask = encoder.known(plan, goals)
    for t in range(5):
        for f in range(encoder.plan_features):
            identity, observed = 2 <= f < 4, f >= 4
            goal = t == 4 and f in (4, 5)
            expected = identity or (t == 0 and observed) or goal
            assert (mask[:, t, :, f] == float(expected)).all(), (t, f)
            if goal:
                assert torch.equal(value[:, t, :, f], goals[..., f - 4])
            elif expected:
                assert torch.equal(value[:, t, :, f], plan[:, t, :, f])


def test_layouts_name_every_feature_and_bring_it_back():
    method = learner(2)
    layout = method.layout()
    assert layout.names == ("action_0", "action_1", "agent_0", "agent_1", *NAMES)
    assert layout.history == 0 and layout.dt == 1.0
    plan = torch.cat([torch.rand(4, 2, 2) * 2 - 1, torch.eye(2).expand(4, 2, 2), states(4, 2)], dim=-1)
    plan[..., 4:] = plan[..., 4:].clamp(-1.5, 1.5)  # within the data's range
    there = layout.normalize(plan)
    assert torch.equal(there[..., :4], plan[..., :4]) and there[..., 4:].abs().max() <= 1
    assert torch.allclose(layout.denormalize(there), plan, atol=1e-5)
    assert torch.allclose(method.preprocessing.encode(plan[..., 4:]), there[..., 2:], atol=1e-6)


def test_madiff_s_layout_and_an_environment_that_names_nothing():
    toy = spec(2, names=())
    method = MADiff(madiff_c.Config(width=16, layers=1, heads=2), toy, CPU, seed=0)
    method.batches(store(2))
    layout = method.layout()
    assert layout.names == ("agent_0", "agent_1", *(f"observation_{i}" for i in range(6)))
    assert layout.history == method.config.history
    raw = torch.cat([torch.eye(2), states(1, 2)[0].clamp(-1.5, 1.5)], dim=-1)
    assert torch.allclose(layout.denormalize(layout.normalize(raw)), raw, atol=1e-3)


# what a plan is told


def test_plans_start_where_the_agents_are_and_end_at_their_goals():
    method = learner(goal=("x", "y"), goal_source=("goal_x", "goal_y"))
    observations = states().clamp(-1.5, 1.5)
    _, plans = planned(method.policy(), observations)
    real = method.preprocessing.decode(method.preprocessing.observations(plans))
    assert torch.allclose(real[:, 0], observations, atol=1e-5)
    assert torch.allclose(real[:, -1, :, :2], observations[..., 4:], atol=1e-5)
    assert not torch.allclose(real[:, -2, :, :2], observations[..., 4:], atol=1e-2)


def test_without_a_source_the_goal_is_the_mean_of_the_episodes_ends():
    method, data = learner(goal=("y",)), store()
    _, plans = planned(method.policy(), states())
    real = method.preprocessing.decode(method.preprocessing.observations(plans))
    ends = torch.stack([data.observations[int(o) + e + int(n)] for e, (o, n) in
                        enumerate(zip(data.offsets, data.lengths, strict=True))])  # fmt: skip
    assert torch.allclose(real[:, -1, 0, 1], ends[:, 0, 1].mean().expand(5), atol=1e-5)


def test_relabelled_windows_were_going_where_they_got_to():
    method = learner(goal=("x", "y"), goal_source=("goal_x", "goal_y"))
    batch = method.batches(store()).gather(torch.arange(10))
    observations = batch["observations"][:, :-1]
    real = method.preprocessing.decode(method.preprocessing.relabel(observations))
    unchanged = method.preprocessing.decode(observations)
    assert torch.equal(real[..., :4], unchanged[..., :4])
    # the goal's range is that of the data's goals
    low, high = method.preprocessing.normalizer.low[4:], method.preprocessing.normalizer.high[4:]
    reached = torch.minimum(torch.maximum(unchanged[:, -1:, :, :2], low), high)
    assert torch.allclose(real[..., 4:], reached.expand_as(real[..., 4:]), atol=1e-5)
    assert not torch.allclose(real[..., 4:], unchanged[..., 4:], atol=0.1)


def test_conditions_are_what_is_still_to_come():
    method, data = learner(2, conditions=("return", "cost", "time")), store(2)
    batch = method.batches(data).gather(torch.tensor([0, 25, 60]))
    cond = method.conditions(batch)
    for row, now in enumerate((0, 25, 60)):
        e = int(data.episode_of[now])
        rest = slice(now, int(data.offsets[e] + data.lengths[e]))
        returns = data.rewards[rest].sum(0) / data.returns().max()
        assert torch.allclose(cond["return"][row, :, 0], returns.float(), atol=1e-5)
        cost = data.costs[rest].sum(0).mean() / data.team_costs().max()
        assert torch.allclose(cond["cost"][row, :, 0], cost.float().expand(2), atol=1e-5)
        gone = (now - int(data.offsets[e])) / method.spec.episode_limit
        assert torch.allclose(cond["time"][row, :, 0], torch.tensor(gone).expand(2))


def test_plans_are_told_how_much_of_the_episode_has_gone():
    policy = learner(2, conditions=("cost", "time"), execute=1).policy()
    policy.reset(seed=0, n=2)
    for steps in range(3):
        told = policy._conditions(torch.arange(2))["time"]
        assert told.shape == (2, 2, 1) and torch.allclose(told, torch.tensor(steps / policy.spec.episode_limit))
        policy.act(torch.zeros(2, 2, policy.spec.observation_size), None)


def test_budget_and_return_change_plans_only_where_they_are_conditions():
    observations = states()
    for conditions, matters in (((), (False, False)), (("return",), (True, False)), (("cost",), (False, True))):
        policy = learner(conditions=conditions, guide_scale=0.0).policy()
        _, base = planned(policy, observations)
        _, other_return = planned(policy, observations, target=torch.full((5, 1), 0.1))
        _, other_cost = planned(policy, observations, budget=torch.full((5,), 2.0))
        assert torch.equal(base, other_return) != matters[0]
        assert torch.equal(base, other_cost) != matters[1]


def test_what_is_paid_lowers_what_is_asked_for():
    policy = learner(2, conditions=("return", "cost"), cost_limit=3.0, discount=0.5).policy()
    assert isinstance(policy, RewardAware) and isinstance(policy, CostAware)
    policy.reset(seed=0, n=2)
    scale = float(policy.encoder.returns_scale)
    policy.receive(torch.tensor([[0.25, 9.0], [0.0, 0.5]]) * scale)
    assert torch.allclose(policy.target, torch.tensor([[1.5, 0.0], [2.0, 1.0]]))
    policy.pay(torch.tensor([[1.0, 0.0], [8.0, 0.0]]))
    assert policy.budget.tolist() == [2.5, -1.0]
    assert policy._conditions(torch.arange(2))["cost"][1].abs().max() == 0  # never less than nothing


def test_value_guidance_raises_the_return_critics_expect():
    method = learner(guide_scale=5.0)
    with torch.no_grad():  # a critic that was hardly trained is nearly flat
        for parameter in method.values.average.model.parameters():
            parameter.mul_(2.0)
    observations = states(20)

    def worth(policy):
        _, plans = planned(policy, observations)
        return method.values.estimates(plans, method.values.clean, torch.zeros(20))["return"].mean.mean()

    guided = worth(method.policy())
    method.config.guide_scale = 0.0
    plain = worth(method.policy())
    method.config.candidates = 8
    best = worth(method.policy())
    assert guided > plain and best > plain


# what becomes of a plan


def test_who_watches_is_shown_what_is_carried_out_what_was_held_and_what_hooks_reported():
    class Reporter(Hook):
        def final(self, x, ctx):
            return x, {"rows": x.new_full((len(x),), len(x))}

    for method in (learner(goal=("x",), candidates=3), learner(2)):
        policy, shown = method.policy([Reporter()]), []
        policy.watch = shown.append
        policy.reset(seed=0, n=4)
        policy.act(states(4, method.spec.agents), None, torch.tensor([True, False, True, True]))
        (planned,) = shown
        assert planned.plans.shape == planned.known.shape == (3, 8, method.spec.agents, method.plan_features)
        actions, first = method.spec.action_size, planned.known[:, 0]
        assert not first[..., :actions].any() and first[..., actions:].all()
        held = planned.known[:, -1, :, actions + method.spec.agents :].sum(-1)
        assert (held == len(method.config.goal)).all()
        assert planned.told["time"].tolist() == [0.0] * 3
        assert planned.info["rows"][0].tolist() == [3.0 * method.config.candidates] * (3 * method.config.candidates)


def test_planned_actions_are_carried_out_and_plans_kept_for_as_long_as_told():
    method = learner(execute=3)
    policy, seen = method.policy(), []
    policy.watch = lambda shown: seen.append(shown.plans)
    policy.reset(seed=0, n=4)
    acted = [policy.act(states(4, seed=k), None) for k in range(7)]
    assert len(seen) == 3
    for k, action in enumerate(acted):
        expected = method.preprocessing.actions(seen[k // 3][:, k % 3]).clamp(-1, 1)
        assert torch.equal(action, expected)


@pytest.mark.parametrize("discrete", [True, False])
def test_inverse_dynamics_leads_from_where_the_agents_are(discrete):
    method = learner(2, discrete, controller="inverse", execute=2)
    policy, seen = method.policy(), []
    policy.watch = lambda shown: seen.append(shown.plans)
    policy.reset(seed=0, n=4)
    masks = torch.rand(4, 2, 3) < 0.5 if discrete else None
    if discrete:
        masks[..., 0] = True
    policy.act(states(4, 2), masks)
    now = states(4, 2, seed=9)
    action = policy.act(now, masks)
    then = method.preprocessing.observations(seen[0][:, 2])
    output = method.ema.model["inverse"](method.preprocessing.encode(now), then)
    if discrete:
        assert torch.equal(action, output.masked_fill(~masks, -torch.inf).argmax(-1))
    else:
        assert torch.equal(action, torch.tanh(output))


def test_tracking_is_a_proportional_and_derivative_controller():
    options = {"positions": ("x", "y"), "velocities": ("vx", "vy"), "gain_position": 0.3, "gain_velocity": 0.2}
    method = learner(controller="track", execute=20, **options)
    policy, seen = method.policy(), []
    policy.watch = lambda shown: seen.append(shown.plans)
    policy.reset(seed=0, n=4)
    for step in range(12):
        now = states(4, seed=step)
        action = policy.act(now, None)
        plan = method.preprocessing.decode(method.preprocessing.observations(seen[0]))
        place = plan[:, min(step, 7), :, :2]
        speed = plan[:, step + 1, :, 2:4] if step < 7 else 0.0
        expected = 0.3 * (place - now[..., :2]) + 0.2 * (speed - now[..., 2:4])
        assert torch.allclose(action, expected.clamp(-1, 1), atol=1e-6)
    assert len(seen) == 1


def test_a_plan_is_followed_by_looking_ahead_along_it():
    """Of the plan's next places and velocities, up to its end, where it stands still."""
    options = {"positions": ("x", "y"), "velocities": ("vx", "vy"), "preview_steps": 3}
    method = learner(controller="preview", execute=20, **options)
    motion = method.preprocessing.motion
    motion.action[:, 2:4] = 0.1 * torch.eye(2)
    motion.seen.fill_(1)
    policy, seen, asked = method.policy(), [], []
    policy.watch = lambda shown: seen.append(shown.plans)
    policy.reset(seed=0, n=4)
    policy.preview.action = lambda *given: asked.append(given)
    for step in range(9):
        policy.act(states(4, seed=step), None)
    plan = method.preprocessing.decode(method.preprocessing.observations(seen[0]))
    for step, (_, places, speeds) in enumerate(asked):
        for k in range(3):
            waypoint = step + 1 + k
            torch.testing.assert_close(places[:, k], plan[:, min(waypoint, 7), :, :2], atol=1e-5, rtol=0)
            expected = plan[:, waypoint, :, 2:4] if waypoint <= 7 else torch.zeros_like(speeds[:, k])
            torch.testing.assert_close(speeds[:, k], expected, atol=1e-5, rtol=0)


def test_motion_is_measured_where_positions_are_named_and_kept_with_the_weights():
    plain, named = learner(), learner(positions=("x", "y"), velocities=("vx", "vy"))  # which have seen their data
    assert not int(plain.preprocessing.motion.seen) and int(named.preprocessing.motion.seen)
    options = {**SMALL, "controller": "preview", "positions": ("x", "y"), "velocities": ("vx", "vy")}
    wants = Diffuser(Config(**options), spec(), CPU, seed=0)
    wants.load_weights(named.weights())
    policy = wants.policy()
    policy.reset(seed=0, n=4)
    assert policy.act(states(4), None).shape == (4, 1, 2)
    old = {key: value for key, value in named.weights().items() if ".motion." not in key}
    wants = Diffuser(Config(**options), spec(), CPU, seed=0)
    wants.load_weights(old)
    with pytest.raises(UserError, match="measured no motion"):
        wants.policy().reset(seed=0, n=4)


def test_legal_actions_only():
    policy = learner(2, discrete=True).policy()
    policy.reset(seed=0, n=40)
    masks = torch.rand(40, 2, 3) < 0.4
    masks[..., 1] = True
    chosen = policy.act(states(40, 2), masks)
    assert masks.gather(-1, chosen[..., None]).all()


def test_an_environment_s_plan_does_not_depend_on_which_others_still_run():
    method = learner()
    observations, active = states(6), torch.tensor([1, 0, 1, 0, 0, 1]).bool()
    one, other = method.policy(), method.policy()
    one.reset(seed=1, n=6)
    other.reset(seed=1, n=6)
    whole, some = one.act(observations, None), other.act(observations, None, active)
    assert torch.allclose(whole[active], some[active], atol=1e-5)


def test_without_agent_attention_a_plan_ignores_teammates():
    for attention in (True, False):
        method = learner(2, agent_attention=attention, network="transformer", heads=2, layers=1, guide_scale=0.0)
        base = states(5, 2)
        changed = base.clone()
        changed[:, 1] = states(5, 1, seed=8)[:, 0]
        first, second = (planned(method.policy(), o)[1][:, :, 0] for o in (base, changed))
        assert torch.allclose(first, second, atol=1e-6) != attention


def test_hooks_that_do_nothing_change_nothing_and_run_last():
    method, order = learner(), []

    class Spy(Hook):
        def predict(self, pred, x, t, ctx):
            assert pred.x0.abs().max() <= 1  # after clipping
            return pred

        def before(self, x, t, ctx):
            order.append("hook")
            return x

    class Guide(Hook):
        def before(self, x, t, ctx):
            order.append("guide")
            return x

    observations = states()
    method.config.guide_scale = 0.0
    expected = planned(method.policy(), observations)[1]
    assert torch.equal(expected, planned(method.policy([Spy()], guide=Guide()), observations)[1])
    assert order == ["guide", "hook"] * method.config.sampler_steps


# learning


def test_padded_steps_carry_no_loss_unless_staying_is_learnt():
    for past_end, nothing in (("ignore", True), ("stay", False)):
        method = learner(past_end=past_end, inverse_dynamics="none")
        batch = method.batches(store()).gather(torch.arange(8))
        batch["valid"] = torch.zeros_like(batch["valid"])
        batch["transition_valid"] = torch.zeros_like(batch["transition_valid"])
        loss = method._diffusion_loss(batch, torch.Generator().manual_seed(0)).detach()
        assert (float(loss) == 0) == nothing


def test_the_first_action_counts_more():
    method = learner(action_weight=7.0)
    batch = method.batches(store()).gather(torch.arange(4))
    weight = method._weight(method.plans(batch, torch.Generator())[0], batch)
    assert (weight[:, 0, :, :2] == 7).all() and (weight[:, 1:, :, :2] <= 1).all() and (weight[..., 2:] <= 1).all()


@pytest.mark.parametrize("options", [
    {}, {"network": "transformer", "layers": 1, "heads": 2, "conditions": ("return", "cost")},
    {"inverse_dynamics": "none", "goal": ("x", "y"), "goal_source": ("goal_x", "goal_y"), "past_end": "stay"},
    {"normalizer": "gaussian", "parametrization": "epsilon"},
])  # fmt: skip
@pytest.mark.parametrize("discrete", [True, False])
def test_updates_lower_the_loss_in_every_mode(options, discrete):
    plain = PlanValueConfig(learn="none")
    method = learner(discrete=discrete, learning_rate=3e-3, values=plain, **options)
    source, generator = method.batches(steady(discrete)), torch.Generator().manual_seed(0)
    losses = [float(method.update(source.sample(generator), generator)["loss"]) for _ in range(100)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_state_round_trip_continues_bit_for_bit():
    first, second = learner(2), Diffuser(Config(**SMALL), spec(2), CPU, seed=9)
    source = first.batches(store(2))
    second.batches(store(2))
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


def test_a_policy_read_back_is_the_same_and_so_are_its_critics():
    first = learner(2, candidates=3)
    source, generator = first.source, torch.Generator().manual_seed(0)
    first.update(source.sample(generator), generator)
    second = Diffuser(Config(**{**SMALL, "candidates": 3}), spec(2), CPU, seed=4)
    second.load_weights(first.weights())
    assert second.values.quantities == ("return", "cost")
    assert torch.equal(first.values.calibration.truth, second.values.calibration.truth)
    observations = states(4, 2)
    assert torch.equal(planned(first.policy(), observations)[0], planned(second.policy(), observations)[0])


@pytest.mark.parametrize(("options", "where"), [
    ({"network": "cnn"}, "network"), ({"horizon": 1}, "horizon"), ({"horizon": 7}, "algo"),
    ({"goal": ("z",)}, "goal"), ({"goal": ("x", "y"), "goal_source": ("goal_x",)}, "goal_source"),
    ({"conditions": ("speed",)}, "conditions"), ({"execute": 8}, "execute"), ({"cost_limit": -1.0}, "below zero"),
    ({"controller": "inverse", "inverse_dynamics": "none"}, "controller"), ({"controller": "track"}, "positions"),
    ({"candidates": 2, "values": PlanValueConfig(learn="none")}, "candidates"),
])  # fmt: skip
def test_impossible_options_are_a_users_error(options, where):
    with pytest.raises(UserError, match=where):
        diffuser.make(Config(**{**SMALL, **options}), spec(), CPU, 0)


def test_candidates_need_a_critic_that_was_trained():
    plain = learner(values=PlanValueConfig(learn="none"))
    wants = Diffuser(Config(**{**SMALL, "candidates": 2}), spec(), CPU, seed=0)
    with pytest.raises(UserError, match="need a critic"):
        wants.load_weights(plain.weights())


def test_the_inverse_dynamics_leads_to_what_it_is_shown_of_a_later_waypoint():
    """Other features of the plan, and other waypoints, do not change the action; shown ones do."""
    method = learner(inverse_ahead=3, inverse_sees=("x",), controller="inverse")
    policy, observations = method.policy(), store().observations[:2]
    policy.reset(seed=0, n=2)
    policy.act(observations, None)
    plans = policy.plans.clone()
    column = method.preprocessing.action_size + method.preprocessing.agents
    before = policy._inverse(0, observations, None)
    for waypoint, feature, same in ((3, column, False), (3, column + 1, True), (1, column, True), (4, column, True)):
        policy.plans = plans.clone()
        policy.plans[:, waypoint, :, feature] += 0.5
        assert torch.equal(policy._inverse(0, observations, None), before) == same


def test_the_inverse_dynamics_learns_from_transitions_that_there_are():
    method, data = learner(inverse_ahead=3), store()
    batch = method.batches(data).sample(torch.Generator().manual_seed(0))
    now, then, actions, valid = method.moves(batch)
    assert now.shape == then.shape and now.shape[1] == actions.shape[1] == 6
    for row in range(len(now)):
        left = int(data.lengths[batch["episode"][row]]) - int(batch["time"][row])  # transitions from here on
        assert valid[row].tolist() == [t + 3 <= left for t in range(6)]
    assert torch.equal(then[:, 2], batch["observations"][:, 5]) and torch.equal(now[:, 2], batch["observations"][:, 2])
