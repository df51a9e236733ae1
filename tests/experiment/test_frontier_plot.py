"""Return against cost: the front, and where names lie."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from madiff.experiment import frontier_plot
from madiff.experiment.plots import COLOURS, look
from madiff.interfaces import UserError
from tests.experiment.test_comparison_plots import count


def dominated(i, costs, returns):
    """Whether some point is at least as good in both and better in one, by looking at all of them."""
    return any(
        c <= costs[i] and r >= returns[i] and (c < costs[i] or r > returns[i])
        for c, r in zip(costs, returns, strict=True)
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_pareto_front_against_brute_force(seed):
    """With many equals in both, and points that are not a number."""
    generator = np.random.default_rng(seed)
    costs, returns = generator.integers(0, 6, (2, generator.integers(0, 13))).astype(float)
    assert sorted(frontier_plot.pareto(costs, returns)) == [
        i for i in range(len(costs)) if not dominated(i, costs, returns)
    ]
    front = frontier_plot.pareto(costs, returns)
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)
    spoilt = [*costs, np.nan, 3.0], [*returns, 99.0, np.nan]
    assert frontier_plot.pareto(*spoilt) == front


@pytest.fixture
def kept(monkeypatch):
    """The figures that were saved."""
    figures, save = [], frontier_plot.save
    monkeypatch.setattr(frontier_plot, "save", lambda figure, out: (figures.append(figure), save(figure, out))[1])
    return figures


def estimate(value, room):
    return value, value - room, value + room


def drawn_front(axis):
    """The corners of the front's line, without its end at the right edge."""
    (line,) = [line for line in axis.lines if line.get_label() == "Pareto front"]
    assert line.get_drawstyle() == "steps-post"
    return list(zip(*line.get_data(), strict=True))[:-1]


def test_the_frontier_that_is_drawn_is_what_no_point_beats(tmp_path, kept):
    points = {"a": (10.0, 5.0), "b": (20.0, 9.0), "c": (25.0, 7.0), "d": (40.0, 12.0), "e": (12.0, 4.0)}
    panel = {name: (estimate(cost, 1.0), estimate(value, 0.5)) for name, (cost, value) in points.items()}
    path = frontier_plot.frontier({"one": panel, "two": panel}, list(points), tmp_path / "f.png", "t", {"two": 20})
    assert count(path, COLOURS[0]) > 50 and count(path, COLOURS[3]) > 50
    one, two = kept[0].axes
    assert drawn_front(one) == drawn_front(two) == [points["a"], points["b"], points["d"]]
    limits = [[line.get_xdata()[0] for line in axis.lines if line.get_label() == "cost limit"] for axis in (one, two)]
    assert limits == [[], [20]]


def test_panels_grow_with_their_points_and_stand_below_each_other_when_they_are_wide(tmp_path, kept):
    for points in (4, 40):
        panel = {str(i): (estimate(i, 0.5), estimate(i % 7, 0.2)) for i in range(points)}
        frontier_plot.frontier({task: panel for task in "abcd"}, list(panel), tmp_path / "f.png", "t")
    few, many = (figure.get_size_inches() for figure in kept)
    rows = [len({axis.get_subplotspec().rowspan.start for axis in figure.axes}) for figure in kept]
    assert rows == [1, 2] and many[0] / 2 == pytest.approx(2 * few[0] / 4)
    assert max(few[0], many[0]) <= 20


def test_names_lie_beside_their_points_and_not_upon_each_other(tmp_path, kept):
    generator = np.random.default_rng(1)
    methods = [f"method-{i}" for i in range(12)]
    places = generator.uniform((0, 0), (40, 9), (12, 2)).tolist()
    panel = {m: (estimate(cost, 0.5), estimate(value, 0.2)) for m, (cost, value) in zip(methods, places, strict=True)}
    panel["method-11"] = panel["method-10"]  # in one place
    frontier_plot.frontier({"t": panel}, methods, tmp_path / "f.png", "t", [5, 20.0])
    (axis,) = kept[0].axes
    kept[0].draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axis.texts}
    assert set(boxes) == set(methods)
    for method, box in boxes.items():
        assert not any(box.overlaps(other) for name, other in boxes.items() if name != method), method
        x, y = axis.transData.transform([panel[method][i][0] for i in (0, 1)])
        assert max(box.x0 - x, x - box.x1, box.y0 - y, y - box.y1) < 60


def test_a_name_has_its_points_colour_and_stands_nearest_to_it(tmp_path, kept):
    """Points so close, with such long bars, that the free room is beside their neighbours."""
    places = {"a": (19.0, 41.8), "b": (21.3, 42.7), "c": (22.8, 42.9), "d": (20.2, 41.9), "far": (66.9, 46.8)}
    panel = {m: (estimate(cost, 6.0), estimate(value, 0.7)) for m, (cost, value) in places.items()}
    panel = {f"method-{name}": pair for name, pair in panel.items()}
    frontier_plot.frontier({"t": panel}, list(panel), tmp_path / "f.png", "t", [10, 20, 40])
    (axis,) = kept[0].axes
    kept[0].draw_without_rendering()
    points = {m: axis.transData.transform((cost[0], value[0])) for m, (cost, value) in panel.items()}
    for i, (method, text) in enumerate(zip(panel, axis.texts, strict=True)):
        box = text.get_window_extent()
        away = {m: np.linalg.norm(np.maximum(0, np.maximum(box.p0 - at, at - box.p1))) for m, at in points.items()}
        assert text.get_text() == method == min(away, key=away.get)
        assert to_rgb(text.get_color()) == to_rgb(look(i)[0])


def test_nothing_to_show_is_refused_and_a_panel_may_be_empty(tmp_path, kept):
    with pytest.raises(UserError, match="no results"):
        frontier_plot.frontier({}, [], tmp_path / "x.png", "")
    panel = {"a": (estimate(np.nan, 1.0), estimate(2.0, 1.0))}
    assert frontier_plot.frontier({"t": panel}, ["a"], tmp_path / "x.png", "").exists()
    assert not kept[0].axes[0].texts
