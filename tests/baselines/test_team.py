"""What every team method promises: legal actions, exact resumption, bootstrapping through truncation only."""

import io

import pytest
import torch

from baselines import cfcql, ma_icq, madt, omiga, qmix, qmix_cql
from madiff.interfaces import EnvironmentSpec, UserError
from tests.baselines.toys import ACTIONS, AGENTS, CPU, OBSERVATION, batch_of, learner, spec, store

RECURRENT = {"recurrent": True, "sequence": 4}
CASES = [
    (qmix, True, {"sequence": 1}),
    (qmix, True, {**RECURRENT, "td_lambda": 0.6}),
    (qmix_cql, True, {"samples": 3}),
    (cfcql, True, {}),
    (cfcql, True, {"share_temperature": 1.0, **RECURRENT}),
    (cfcql, False, {"conservative_batch": 4}),
    (cfcql, False, {"share_temperature": -1.0, "conservative_batch": 4, **RECURRENT}),
    (ma_icq, True, {}),
    (ma_icq, True, RECURRENT),
    (ma_icq, False, {}),
    (omiga, True, {}),
    (omiga, False, {}),
    (madt, True, {"context": 3}),
    (madt, False, {"context": 3, "condition_return": False}),
]
each_case = pytest.mark.parametrize("method, discrete, options", CASES)


def trained(method, discrete, options, steps=5, **more):
    made, source = learner(method, discrete, **options, **more)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        metrics = made.update(source.sample(generator), generator)
        assert all(torch.isfinite(value) and not value.requires_grad for value in metrics.values())
    return made, source


@each_case
def test_acts_legally_and_says_what_it_costs(method, discrete, options):
    for acting in ("greedy", "sample"):
        chosen = {"acting": acting} if "acting" in method.Config.__dataclass_fields__ else {}
        policy = trained(method, discrete, {**options, **chosen})[0].policy()
        assert policy.parameters > 0 and policy.network_calls_per_decision == 1
        policy.reset(seed=0, n=50)
        for _ in range(5):
            masks = (torch.rand(50, AGENTS, ACTIONS) < 0.3).index_fill(-1, torch.tensor([2]), True)
            actions = policy.act(torch.rand(50, AGENTS, OBSERVATION), masks if discrete else None)
            if discrete:
                assert masks.gather(-1, actions[..., None]).all()
            else:
                assert actions.shape == (50, AGENTS, ACTIONS) and actions.abs().max() <= 1


@each_case
def test_a_saved_state_continues_bit_for_bit(method, discrete, options):
    first, source = trained(method, discrete, options)
    second = method.make(method.Config(**{"width": 16, "batch_size": 16, **options}), spec(discrete), CPU, 9)
    saved = {name: value.clone() for name, value in first.weights().items()}
    buffer = io.BytesIO()
    torch.save(first.training_state(), buffer)
    buffer.seek(0)
    second.load_weights(saved)
    second.load_training_state(torch.load(buffer, weights_only=True))
    for step in range(4):
        for each in (first, second):
            generator = torch.Generator().manual_seed(step)
            each.update(source.sample(generator), generator)
    assert first.weights().keys() == second.weights().keys()
    assert all(torch.equal(value, second.weights()[name]) for name, value in first.weights().items())


@each_case
def test_does_without_state_and_masks(method, discrete, options):
    made, _ = trained(method, discrete, options, state=False, masks=False)
    policy = made.policy()
    policy.reset(seed=0, n=2)
    assert policy.act(torch.rand(2, AGENTS, OBSERVATION), None).shape[:2] == (2, AGENTS)


def test_missing_state_is_a_users_error():
    made = qmix.make(qmix.Config(), spec(state=True), CPU, 0)
    with pytest.raises(UserError, match="state"):
        made.batches(store(state=False))


@pytest.mark.parametrize("method", [qmix, qmix_cql])
def test_continuous_actions_are_refused_where_all_actions_are_compared(method):
    with pytest.raises(UserError, match="discrete"):
        method.make(method.Config(), spec(discrete=False), CPU, 0)


@pytest.mark.parametrize("method", [qmix, ma_icq, cfcql])
def test_a_memory_needs_sequences(method):
    with pytest.raises(UserError, match="algo.sequence"):
        method.make(method.Config(recurrent=True, sequence=1), spec(), CPU, 0)


@pytest.mark.parametrize("method", [ma_icq, omiga, madt])
def test_unknown_acting_is_a_users_error(method):
    with pytest.raises(UserError, match="algo.acting"):
        method.make(method.Config(acting="argmax"), spec(), CPU, 0).policy()


def test_policies_do_not_depend_on_other_agents_or_copies():
    policy = trained(ma_icq, True, {})[0].policy()
    observations = torch.rand(4, AGENTS, OBSERVATION)
    other = observations.clone()
    other[1:], other[0, 1:] = torch.rand(3, AGENTS, OBSERVATION), torch.rand(AGENTS - 1, OBSERVATION)
    policy.reset(seed=0, n=4)
    assert policy.act(observations, None)[0, 0] == policy.act(other, None)[0, 0]


def test_padded_dimensions_carry_no_density():
    """An agent with one real dimension: whatever the policy says of the others, its loss is the same."""
    made, source = learner(omiga, discrete=False, sizes=(ACTIONS, ACTIONS, 1))
    batch = batch_of(source)
    changed = {**batch, "actions": batch["actions"].clone()}
    changed["actions"][:, :, 2, 1:] += 0.3
    log_prob = [made.head.log_prob(torch.ones(16, 1, AGENTS, 2 * ACTIONS), b["actions"]) for b in (batch, changed)]
    assert torch.equal(*log_prob)


def test_one_agent_is_a_team():
    alone = EnvironmentSpec("toy", "toy", 1, OBSERVATION, ACTIONS, True, 0, 12)
    from madiff.data.store import EpisodeStore

    rows = [
        {"observations": torch.rand(4, 1, OBSERVATION), "actions": torch.randint(ACTIONS, (3, 1)),
         "rewards": torch.rand(3, 1), "terminated": True}
        for _ in range(3)
    ]  # fmt: skip
    for method in (qmix, qmix_cql, cfcql, ma_icq, omiga):
        made = method.make(method.Config(width=16, batch_size=8), alone, CPU, 0)
        source = made.batches(EpisodeStore.from_arrays(rows, action_size=ACTIONS))
        generator = torch.Generator().manual_seed(0)
        assert all(torch.isfinite(v) for v in made.update(source.sample(generator), generator).values())
