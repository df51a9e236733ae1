import re

import numpy as np
import pytest
from PIL import Image

from madiff.experiment import comparison_plots
from madiff.experiment.plots import COLOURS, Series
from madiff.interfaces import UserError


def count(path, colour):
    """How many pixels of the picture are of this colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    return int((np.abs(pixels - [int(part, 16) for part in re.findall("..", colour[1:])]).max(1) < 8).sum())


def dark(path):
    with Image.open(path) as image:
        return int((np.asarray(image.convert("L")) < 160).sum())


def test_bars_are_as_high_as_their_means_in_every_panel_and_group(tmp_path):
    panels = {task: {shift: {"a": (8.0, 8.0, 8.0), "b": (4.0, 4.0, 4.0)} for shift in ("x", "y")} for task in "st"}
    path = comparison_plots.bars(panels, ["a", "b"], tmp_path / "new" / "bars.png", title="t", ylabel="return")
    legend = 200  # pixels of its two patches, alike
    assert count(path, COLOURS[0]) - legend == pytest.approx(2 * (count(path, COLOURS[1]) - legend), rel=0.1)


def test_a_method_looks_the_same_wherever_it_is(tmp_path):
    """Also where others are missing, and beyond the number of colours."""
    methods = [f"m{i}" for i in range(9)]
    one = {"t": {"": {"m1": (1.0, 0.9, 1.1)}}}
    path = comparison_plots.bars(one, methods, tmp_path / "one.png", title="t", ylabel="return")
    assert count(path, COLOURS[1]) > 1000 and count(path, COLOURS[0]) == 0
    two = {"t": {"": {"m8": (1.0, 0.9, 1.1)}}}
    again = comparison_plots.bars(two, methods, tmp_path / "two.png", title="t", ylabel="return")
    assert 0 < count(again, COLOURS[1]) < 0.95 * count(path, COLOURS[1])  # hatched


def test_curves_are_marked_where_there_are_points(tmp_path):
    one = Series([5, 25, 100], [1.0, 2.0, 3.0], [0.5, 1.5, 2.5], [1.5, 2.5, 3.5])
    series = {"a": one, "b": Series([5, 100], [1, 2])}
    labels = {"title": "t", "xlabel": "share", "ylabel": "return"}
    plain, logarithmic = (
        comparison_plots.curves({"t": series}, ["a", "b"], tmp_path / f"{log}.png", logarithmic=log, **labels)
        for log in (False, True)
    )
    assert all(count(path, colour) > 100 for path in (plain, logarithmic) for colour in COLOURS[:2])
    assert plain.read_bytes() != logarithmic.read_bytes()


def test_profiles_and_intervals_show_every_method_and_the_reference(tmp_path):
    share = ([1.0, 0.5, 0.0], [0.9, 0.4, 0.0], [1.0, 0.6, 0.1])
    shares = {"a": share, "b": ([1.0, 0.9, 0.5],) * 3}
    path = comparison_plots.profiles(shares, [0, 1, 2], ["a", "b"], tmp_path / "p.png", title="t")
    assert count(path, COLOURS[0]) > 100 and count(path, COLOURS[1]) > 100
    values = {"a": (0.5, 0.4, 0.6), "b": (0.7, 0.6, 0.9)}
    bare, lined = (
        comparison_plots.intervals(values, ["a", "b"], tmp_path / f"{line}.png", title="t", xlabel="x", reference=line)
        for line in (None, 0.55)
    )
    assert count(bare, COLOURS[1]) > 20 and dark(lined) > dark(bare) + 50


def test_nothing_to_show_is_refused(tmp_path):
    for plot in (
        lambda: comparison_plots.bars({}, [], tmp_path / "x.png", title="", ylabel=""),
        lambda: comparison_plots.curves({}, [], tmp_path / "x.png", title="", xlabel="", ylabel=""),
        lambda: comparison_plots.profiles({}, [], [], tmp_path / "x.png", title=""),
        lambda: comparison_plots.intervals({}, [], tmp_path / "x.png", title="", xlabel=""),
    ):
        with pytest.raises(UserError, match="no results"):
            plot()
    assert not (tmp_path / "x.png").exists()
