"""Stores, files, windows and normalisers against slices and sums made by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata

from madiff.data import EpisodeStore, WindowSampler, make_normalizer, returns_to_go, writers
from madiff.data.normalizers import KNOTS
from madiff.data.replay import single_steps
from madiff.interfaces import UserError
from tests.properties import few

EXTREME = [0.0, -0.0, 1e-45, -1e-38, 3.4e38, 0.1]
EXTRAS = ("rewards", "costs", "terminated", "next_available_actions")


@st.composite
def sets(draw, agents=3):
    """Episodes as arrays, of random lengths and sizes, with or without masks and a state; some values are extreme."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    agents, observed, acted = draw(st.integers(1, agents)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    discrete, masked, stateful = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())

    def values(*shape):
        drawn = rng.normal(size=shape).astype(np.float32)
        return np.where(rng.random(shape) < 0.05, rng.choice(EXTREME, shape), drawn).astype(np.float32)

    episodes = []
    for steps in lengths:
        actions = rng.integers(acted, size=(steps, agents))
        episode = {
            "observations": values(steps + 1, agents, observed), "rewards": rng.normal(size=(steps, agents)),
            "costs": rng.random((steps, agents)), "terminated": bool(rng.integers(2)),
            "actions": actions if discrete else rng.uniform(-1, 1, (steps, agents, acted)),
        }  # fmt: skip
        if discrete and masked:
            episode["available_actions"] = rng.random((steps + 1, agents, acted)) < 0.5
            np.put_along_axis(episode["available_actions"][:-1], actions[..., None], True, -1)
        if stateful:
            episode["state"] = values(steps + 1, 2)
        episodes.append(episode)
    return episodes, acted


def made(drawn, **card):
    episodes, acted = drawn
    return EpisodeStore.from_arrays(episodes, card, acted)


@few
@given(drawn=sets())
def test_every_episode_comes_out_as_it_went_in(drawn):
    store = made(drawn)
    for number, episode in enumerate(drawn[0]):
        one = store.subset([number])
        for name, values in episode.items():
            got = one.tensors[name].numpy()
            assert np.array_equal(got, np.asarray(values).astype(got.dtype).reshape(got.shape)), name
        steps = len(episode["rewards"])
        assert one.lengths.tolist() == [steps] and bool(one.truncated[0]) is not episode["terminated"]
        assert (store.episode_of == number).sum() == steps
        np.testing.assert_allclose(store.returns()[number], episode["rewards"].sum(0), rtol=1e-5, atol=1e-5)


@few
@given(drawn=sets(), data=st.data())
def test_a_subset_is_the_concatenation_of_its_episodes(drawn, data):
    store = made(drawn)
    chosen = data.draw(st.lists(st.integers(0, store.episodes - 1), min_size=1, max_size=8))
    parts = [store.subset([number]) for number in chosen]
    assert store.subset(chosen).sha256 == EpisodeStore.concatenate(parts).sha256
    assert EpisodeStore.concatenate([store.subset([number]) for number in range(store.episodes)]).sha256 == store.sha256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@few
@given(drawn=sets(), word=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_files_give_back_every_bit(folder, drawn, word):
    store = made(drawn, env=word, nested={"words": [word]})
    store.save(folder / "set.h5")
    again = EpisodeStore.open(folder / "set.h5")
    assert again.card == store.card and again.tensors.keys() == store.tensors.keys()
    for name, values in store.tensors.items():
        assert values.numpy().tobytes() == again.tensors[name].numpy().tobytes(), name


@few
@given(drawn=sets(agents=1))
def test_minari_gives_back_all_that_it_has_a_place_for(folder, drawn):
    store = made(drawn)
    writers.write(store, folder / "walk-v0", "minari")
    again = EpisodeStore.open(folder / "walk-v0")
    for name, values in store.tensors.items():
        if name != "state":
            assert torch.equal(again.tensors[name], values), name


@few
@given(drawn=sets(), data=st.data())
def test_one_number_that_is_none_is_found_wherever_it_is(drawn, data):
    episodes, _ = drawn
    floats = [name for name, values in episodes[0].items() if np.asarray(values).dtype.kind == "f"]
    name = data.draw(st.sampled_from(floats))
    number = data.draw(st.integers(0, len(episodes) - 1))
    spoilt = np.array(episodes[number][name], np.float64)
    place = tuple(data.draw(st.integers(0, length - 1)) for length in spoilt.shape)
    spoilt[place] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e300]))
    with np.errstate(all="ignore"), pytest.raises(UserError) as caught:
        EpisodeStore.from_arrays([*episodes[:number], episodes[number] | {name: spoilt}, *episodes[number + 1 :]])
    assert f"episode {number}" in str(caught.value) and name in str(caught.value)


def by_hand(episode, now, history, horizon, stride):
    """One window, entry by entry."""
    last = len(episode["rewards"])
    times = range(now - stride * history, now + stride * horizon + 1, stride)
    held, taken = [min(max(t, 0), last) for t in times], [min(max(t, 0), last - 1) for t in times][:-1]
    window = {
        "observations": episode["observations"][held], "valid": [0 <= t <= last for t in times],
        "actions": episode["actions"][taken], "rewards": episode["rewards"][taken], "costs": episode["costs"][taken],
        "terminated": [episode["terminated"] and t == last - 1 for t in taken],
        "transition_valid": [0 <= a and b <= last for a, b in zip(times, times[1:], strict=False)],
    }  # fmt: skip
    if "available_actions" in episode:
        window["available_actions"] = episode["available_actions"][taken]
        window["next_available_actions"] = episode["available_actions"][[t + 1 for t in taken]]
    if "state" in episode:
        window["state"] = episode["state"][held]
    return window


@few
@given(drawn=sets(), history=st.integers(0, 4), horizon=st.integers(1, 5), stride=st.integers(1, 3), data=st.data())
def test_windows_are_slices_of_one_episode(drawn, history, horizon, stride, data):
    store, (episodes, _) = made(drawn), drawn
    extras = (*EXTRAS, "state") if store.state is not None else EXTRAS
    sampler = WindowSampler(store, history=history, horizon=horizon, batch_size=1, extras=extras, stride=stride)
    now = data.draw(st.lists(st.integers(0, store.transitions - 1), min_size=1, max_size=6))
    batch = sampler.gather(torch.tensor(now))
    for row, transition in enumerate(now):
        number = int(store.episode_of[transition])
        time = transition - int(store.offsets[number])
        assert (int(batch["episode"][row]), int(batch["time"][row])) == (number, time)
        expected = by_hand(episodes[number], time, history, horizon, stride)
        assert expected.keys() == batch.keys() - {"returns", "episode", "time"}
        for name, values in expected.items():
            got = batch[name][row].numpy()
            assert np.array_equal(got, np.asarray(values).astype(got.dtype)), name


@few
@given(drawn=sets(), discount=st.floats(0, 1))
def test_single_steps_and_returns_to_go_are_what_a_loop_finds(drawn, discount):
    store, row = made(drawn), 0
    steps, returns = single_steps(store), returns_to_go(store, discount)
    for episode in drawn[0]:
        for t in range(len(episode["rewards"])):
            assert np.array_equal(steps["observations"][row], episode["observations"][t])
            assert np.array_equal(steps["next_observations"][row], episode["observations"][t + 1])
            ends = episode["terminated"] and t == len(episode["rewards"]) - 1
            assert bool(steps["terminated"][row]) is ends
            ahead = episode["rewards"][t:].astype(np.float32)
            expected = (discount ** np.arange(len(ahead)) @ ahead.astype(np.float64)).astype(np.float32)
            np.testing.assert_allclose(returns[row], expected, rtol=1e-5, atol=1e-5)
            row += 1
    assert row == store.transitions


elements = st.floats(-1e3, 1e3, width=32).map(lambda value: value if abs(value) > 1e-3 else 0.0)
tables = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=elements)


@few
@given(table=tables, constant=st.lists(elements, min_size=2, max_size=2))
def test_what_is_measured_is_what_numpy_measures(table, constant):
    table = np.column_stack([table, np.broadcast_to(np.array(constant, np.float32), (len(table), 2))])
    x, varies = torch.from_numpy(table), np.ptp(table, 0) > 2e-6 * np.abs(table).max(0)
    limits, gaussian = make_normalizer("limits").fit(x), make_normalizer("gaussian").fit(x)
    assert np.array_equal(limits.low.numpy()[varies], table.min(0)[varies])
    assert np.array_equal(limits.high.numpy()[varies], table.max(0)[varies])
    wide = table.astype(np.float64)
    np.testing.assert_allclose(gaussian.mean.numpy()[varies], wide.mean(0)[varies], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gaussian.std.numpy()[varies], wide.std(0)[varies], rtol=1e-5)
    for name in ("limits", "gaussian", "cdf"):
        normalizer = make_normalizer(name).fit(x)
        assert not normalizer.normalize(x)[:, -2:].any()
        assert np.array_equal(normalizer.denormalize(torch.full_like(x, 0.7))[:, -2:], table[:, -2:])


@few
@given(table=tables)
def test_the_distribution_function_is_the_rank_among_the_data(table):
    """Where values lie apart: the mid-ranks of scipy, scaled to [-1, 1]."""
    column = np.unique(np.round(table.ravel()).astype(np.float32))[: KNOTS // 2]
    column = np.repeat(column, np.arange(len(column)) % 3 + 1)[:, None]
    got = make_normalizer("cdf").fit(torch.from_numpy(column)).normalize(torch.from_numpy(column))[:, 0].numpy()
    rank = rankdata(column[:, 0])
    spread = rank[-1] - rank[0]
    expected = 2 * (rank - rank[0]) / spread - 1 if spread else np.zeros(len(rank))
    np.testing.assert_allclose(got, expected, atol=1e-4)


@few
@given(table=tables, name=st.sampled_from(["limits", "gaussian", "cdf"]), data=st.data())
def test_dimensions_do_not_touch_each_other(table, name, data):
    order = data.draw(st.permutations(range(table.shape[1])))
    x, probes = torch.from_numpy(table), torch.from_numpy(table * np.float32(1.5))
    together, apart = make_normalizer(name).fit(x), make_normalizer(name).fit(x[:, order])
    torch.testing.assert_close(together.normalize(probes)[:, order], apart.normalize(probes[:, order]))
    torch.testing.assert_close(together.denormalize(probes)[:, order], apart.denormalize(probes[:, order]))


@few
@given(table=tables, share=st.floats(0, 1), name=st.sampled_from(["limits", "gaussian"]))
def test_values_between_the_data_come_back_too(table, share, name):
    x = torch.from_numpy(table)
    between = torch.lerp(x, x.flip(0), share)
    normalizer = make_normalizer(name).fit(x)
    scale = np.abs(table).max(0) + np.ptp(table, 0) + 1e-6
    assert (np.abs((normalizer.denormalize(normalizer.normalize(between)) - between).numpy()) / scale).max() < 1e-5
