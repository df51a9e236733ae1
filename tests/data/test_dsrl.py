"""DSRL's files: the same episodes as a plain loop over the rows gives, one clear line for damage; DSRL's scores."""

import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from madiff.data import EpisodeStore, dsrl_scores
from madiff.interfaces import UserError

FIXTURE = Path(__file__).parent / "formats" / "dsrl" / "SafetyPointCircle1Gymnasium-v0-153-2.hdf5"


@pytest.fixture
def file(tmp_path):
    return Path(shutil.copy(FIXTURE, tmp_path / FIXTURE.name))


def write(path, lengths, terminated=(), observed=3, columns=False, compression="gzip", seed=0):
    """Episodes of given lengths in DSRL's layout; those numbered in `terminated` end by themselves."""
    rng, rows = np.random.default_rng(seed), sum(lengths)
    parts = [rng.normal(size=(length + 1, observed)).astype(np.float32) for length in lengths]
    ends = np.cumsum(lengths) - 1
    flags = {name: np.zeros(rows, bool) for name in ("terminals", "timeouts")}
    for episode, end in enumerate(ends):
        flags["terminals" if episode in terminated else "timeouts"][end] = True
    arrays = {
        "observations": np.concatenate([part[:-1] for part in parts]),
        "next_observations": np.concatenate([part[1:] for part in parts]),
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows), "costs": rng.integers(0, 2, rows).astype(np.float64), **flags,
    }  # fmt: skip
    with h5py.File(path, "w") as target:
        for name, values in arrays.items():
            shaped = values[:, None] if columns and values.ndim == 1 else values
            target.create_dataset(name, data=shaped, compression=compression)
    return arrays


def change(path, name, how):
    with h5py.File(path, "r+") as target:
        values = how(target[name][()])
        del target[name]
        if values is not None:
            target.create_dataset(name, data=values, compression="gzip")


def put(value, *index):
    def how(array):
        array[index] = value
        return array

    return how


@pytest.mark.parametrize("format", ["auto", "dsrl"])
def test_episodes_are_those_a_plain_loop_over_the_rows_finds(format):
    store = EpisodeStore.open(FIXTURE, format)
    assert (store.episodes, store.agents, store.observation_size, store.action_size) == (2, 1, 28, 2)
    episode, step = 0, 0
    with h5py.File(FIXTURE) as source:
        rows = {name: source[name][()] for name in source}
    for row in range(len(rows["rewards"])):
        one = store.subset([episode])
        assert np.array_equal(one.observations[step, 0], rows["observations"][row])
        assert np.array_equal(one.observations[step + 1, 0], rows["next_observations"][row])
        assert np.array_equal(one.actions[step, 0], rows["actions"][row])
        assert (one.rewards[step, 0], one.costs[step, 0]) == (rows["rewards"][row], rows["costs"][row])
        step += 1
        if rows["terminals"][row] or rows["timeouts"][row]:
            assert step == int(one.lengths) and bool(one.truncated) == bool(rows["timeouts"][row])
            episode, step = episode + 1, 0
    assert episode == 2 and store.team_costs().sum() == rows["costs"].sum() > 0
    assert store.card["format"] == "dsrl" and store.card["task"] == "PointCircle1"
    assert str(FIXTURE.parent) not in str(store.card)


def test_columns_doubles_and_uncompressed_arrays_are_the_same_episodes(tmp_path):
    arrays = write(tmp_path / "plain.hdf5", [5, 3, 7], terminated=[1])
    write(tmp_path / "columns.hdf5", [5, 3, 7], terminated=[1], columns=True, compression=None)
    plain, columns = (EpisodeStore.open(tmp_path / f"{name}.hdf5") for name in ("plain", "columns"))
    assert plain.sha256 == columns.sha256 and "task" not in plain.card
    assert plain.lengths.tolist() == [5, 3, 7] and plain.terminated.tolist() == [False, True, False]
    assert plain.truncated.tolist() == [True, False, True]
    assert np.allclose(plain.returns()[:, 0], [arrays["rewards"][a:b].sum() for a, b in ((0, 5), (5, 8), (8, 15))])


def test_rows_after_the_last_end_are_an_episode_cut_by_time(tmp_path):
    write(tmp_path / "d.hdf5", [4, 6])
    change(tmp_path / "d.hdf5", "timeouts", put(0, 9))
    store = EpisodeStore.open(tmp_path / "d.hdf5")
    assert store.lengths.tolist() == [4, 6] and store.truncated.tolist() == [True, True]


def test_the_task_of_a_velocity_file(tmp_path):
    write(tmp_path / "SafetyHalfCheetahVelocityGymnasium-v1-250-2495.hdf5", [4])
    write(tmp_path / "SafetyCarRun-v0-40-651.hdf5", [4])
    tasks = {EpisodeStore.open(path).card["task"] for path in tmp_path.iterdir()}
    assert tasks == {"HalfCheetahVelocity", "CarRun"} and tasks <= set(dsrl_scores.TASKS)


@pytest.mark.parametrize(
    ("name", "how", "line"),
    [
        ("costs", lambda array: None, "lacks costs; allowed: observations, next_observations, actions"),
        ("rewards", put(np.nan, 17), "rewards, row 17: holds NaN or infinity; allowed: finite numbers"),
        ("observations", put(np.inf, 30, 5), "observations, row 30: holds NaN or infinity"),
        ("next_observations", lambda array: array[:, :27], "next_observations: is 27 wide; allowed: 28, as observ"),
        ("actions", lambda array: array[:-1], "actions: has 999 rows; allowed: 1000, as observations has"),
        ("actions", lambda array: array[..., None], "actions: has shape (1000, 2, 1); allowed: (rows, values)"),
        ("costs", lambda array: np.stack([array, array], 1), "costs: has shape (1000, 2); allowed: (rows,)"),
        ("actions", put(1.5, 40, 1), "unusable data: actions, episode 0, step 40: holds an action out of range"),
        ("observations", lambda array: array[::-1].copy(), "row 0: is not the following row's observation"),
        ("timeouts", put(0, 499), "row 499: is not the following row's observation; allowed: whole episodes"),
        ("rewards", lambda array: array.astype("S8"), "rewards: is not a plain array of numbers"),
    ],
)  # fmt: skip
def test_damage_is_one_line_naming_file_key_and_row(file, name, how, line):
    change(file, name, how)
    with pytest.raises(UserError) as caught:
        EpisodeStore.open(file, "dsrl")
    assert line in str(caught.value) and str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["auto", "dsrl"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_file_cut_short(file, share, format):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged, or no DSRL data") as caught:
        EpisodeStore.open(file, format)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_claims_of_more_than_the_file_holds_and_links_are_refused(file, tmp_path):
    with h5py.File(file, "r+") as target:
        del target["costs"]
        target.create_dataset("costs", shape=(2**40,), dtype="f4", chunks=(2**20,), compression="gzip")
    with pytest.raises(UserError, match="costs: claims more values than the file holds"):
        EpisodeStore.open(file)
    with h5py.File(file, "r+") as target:
        del target["costs"]
        target["costs"] = h5py.ExternalLink(str(FIXTURE), "/costs")
    with pytest.raises(UserError, match="costs: is not a plain array of numbers"):
        EpisodeStore.open(file)
    with pytest.raises(UserError, match="is not a regular file"):
        EpisodeStore.open(tmp_path, "dsrl")


def test_native_files_stay_native(tmp_path):
    store = EpisodeStore.open(FIXTURE)
    store.save(tmp_path / "native.h5")
    again = EpisodeStore.open(tmp_path / "native.h5")
    assert again.sha256 == store.sha256 and again.card["task"] == "PointCircle1"


def test_normalised_costs():
    """(C + e) / (limit + e), e = 1 only without any budget: by hand."""
    assert [dsrl_scores.normalised_cost(cost, 20) for cost in (0, 10, 20, 50)] == [0, 0.5, 1, 2.5]
    assert [dsrl_scores.normalised_cost(cost, 0) for cost in (0, 1, 9)] == [1, 2, 10]
    with pytest.raises(UserError, match="cost limit: is -1; allowed: 0 or more"):
        dsrl_scores.normalised_cost(3, -1)


def test_normalised_returns():
    """The published extremes are 0 and 1, what lies between is in proportion, beyond them outside."""
    assert dsrl_scores.normalised_return("PointCircle1", 20.067627) == 0
    assert dsrl_scores.normalised_return("PointCircle1", 61.7281952) == 1
    middle = (20.067627 + 61.7281952) / 2
    assert dsrl_scores.normalised_return("PointCircle1", middle) == pytest.approx(0.5)
    assert dsrl_scores.normalised_return("AntVelocity", 6.1519012 - 2970.12470880) == pytest.approx(-1)
    with pytest.raises(UserError, match="DSRL has no task 'PointRun0'; allowed: PointGoal1"):
        dsrl_scores.normalised_return("PointRun0", 1.0)


def test_limits_by_protocol():
    assert dsrl_scores.cost_limits("CarPush2") == (20, 40, 80) and dsrl_scores.cost_limits("CarRun") == (10, 20, 40)
    assert [dsrl_scores.cost_limits(task, "tight") for task in ("CarGoal1", "AntRun")] == [(10,), (5,)]
    assert dsrl_scores.cost_limits("CarGoal1", "budgets") == (10, 20, 40, 80)
    with pytest.raises(UserError, match="no protocol is called 'loose'; allowed: dsrl, tight, budgets"):
        dsrl_scores.cost_limits("CarGoal1", "loose")


@pytest.mark.parametrize(("limit", "horizon", "known"), [(20, 1000, 2.000), (20, 500, 3.974)])
def test_a_discounted_limit_is_what_a_limit_spent_evenly_costs(limit, horizon, known):
    evenly = sum(0.99**step * limit / horizon for step in range(horizon))
    found = dsrl_scores.discounted_limit(limit, 0.99, horizon)
    assert found == pytest.approx(evenly, rel=1e-12) and round(found, 3) == known
    assert dsrl_scores.discounted_limit(limit, 1.0, horizon) == limit
    assert dsrl_scores.discounted_limit(limit, 1 - 1e-9, horizon) == pytest.approx(limit, rel=1e-5)
    assert not math.isnan(dsrl_scores.discounted_limit(0, 0.99, horizon))


def test_the_published_sizes_are_those_of_the_file():
    assert len(dsrl_scores.GYMNASIUM) == 21 and len(dsrl_scores.BULLET) == 8
    assert all(found.lowest < found.highest for found in dsrl_scores.TASKS.values())
    store, found = EpisodeStore.open(FIXTURE), dsrl_scores.task("PointCircle1")
    sizes = store.observation_size, store.action_size, int(store.lengths.max())
    assert sizes == (found.observations, found.actions, found.horizon)
