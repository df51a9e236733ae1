import json

import numpy as np
import pytest
from PIL import Image

from madiff.experiment import plots
from madiff.experiment.plots import Series
from madiff.interfaces import UserError


def metrics(tmp_path, *, loss=True, returns=True):
    lines = []
    for step in range(10, 110, 10):
        record = {"step": step}
        if loss:
            record["loss"] = 1 / step
        if returns and step % 20 == 0:
            record |= {"eval/return_mean": step, "eval/return_ci95_low": step - 5, "eval/return_ci95_high": step + 5}
        lines.append(json.dumps(record))
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines))
    return path


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def near(pixels, colour):
    """How many pixels are of this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels.astype(int) - wanted).max(-1) < 8).sum())


def test_the_learning_curve_has_a_panel_for_each_quantity_there_is(tmp_path):
    both = picture(plots.learning_curve(metrics(tmp_path), tmp_path / "plots" / "both.png", "toy"))
    only = picture(plots.learning_curve(metrics(tmp_path, returns=False), tmp_path / "loss.png", "toy"))
    assert both.shape == (480, 1440, 3) and only.shape == (480, 720, 3)
    assert near(both[:, :720], plots.COLOURS[0]) > 100 and near(both[:, 720:], plots.COLOURS[0]) > 100


def test_reference_lines_are_drawn_in_colours_of_their_own(tmp_path):
    bare = picture(plots.learning_curve(metrics(tmp_path), tmp_path / "a.png", "toy"))
    lined = picture(plots.learning_curve(metrics(tmp_path), tmp_path / "b.png", "toy", {"behaviour": 50.0, "bc": 30.0}))
    for colour in plots.COLOURS[1:3]:
        assert near(bare, colour) == 0 and near(lined[:, 720:], colour) > 100


def test_a_record_without_anything_to_plot_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a loss nor a return"):
        plots.learning_curve(metrics(tmp_path, loss=False, returns=False), tmp_path / "a.png", "toy")
    assert not (tmp_path / "a.png").exists()


def test_bars_are_as_high_as_their_means(tmp_path):
    results = [
        {"method": "ours", "return_mean": 8.0, "return_ci95": (7.0, 9.0)},
        {"method": "bc", "return_mean": 4.0, "return_ci95": None},
    ]
    pixels = picture(plots.return_bars(results, tmp_path / "returns.png", "toy", behaviour=6.0))
    areas = [near(pixels, colour) for colour in (plots.COLOURS[0], "#9FB4C7")]
    assert areas[0] == pytest.approx(2 * areas[1], rel=0.1)
    assert near(pixels, plots.COLOURS[1]) > 100
    with pytest.raises(UserError, match="no results"):
        plots.return_bars([], tmp_path / "none.png", "toy")


@pytest.mark.parametrize("style", ["line", "scatter"])
def test_sweeps_draw_points_intervals_and_the_identity(tmp_path, style):
    with_interval = Series([1, 2, 3], [1.0, 2.0, 2.5], [0.5, 1.5, 2.0], [1.5, 2.5, 3.0])
    without = Series([1, 2, 3], [1.0, 2.0, 2.5])
    labels = {"title": "t", "xlabel": "x", "ylabel": "y", "style": style}
    drawn = {
        name: picture(plots.sweep({"a": series}, tmp_path / f"{name}.png", identity=identity, **labels))
        for name, series, identity in [
            ("bare", without, None),
            ("interval", with_interval, None),
            ("identity", without, "as asked"),
        ]
    }
    assert all(pixels.shape == (480, 720, 3) and near(pixels, plots.COLOURS[0]) > 50 for pixels in drawn.values())
    assert not np.array_equal(drawn["bare"], drawn["interval"]) and not np.array_equal(drawn["bare"], drawn["identity"])
    with pytest.raises(UserError, match="no points"):
        plots.sweep({"a": Series([], [])}, tmp_path / "none.png", **labels)
