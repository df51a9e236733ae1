"""The picture of what methods make of data with several modes, from runs of a few updates."""

import numpy as np
import pytest
from PIL import Image

from madiff.benchmarking import modes, suite
from madiff.benchmarking.board import Board
from madiff.benchmarking.folder import Folder

CONTENT = {
    "about": "a", "leaves_out": "l", "same_for_all": "s", "seeds": 1, "reference": "bc", "baselines": ["bc"],
    "options": {"train.steps": 2, "train.checkpoint_every": 2, "train.evaluate_episodes": 1, "evaluation.episodes": 2,
                "data.episodes": 300, "algo.width": 8},
    "tasks": {"turning": {"options": {"env": "bandit", "scenario": "turning", "data.quality": "medium"}},
              "xor": {"options": {"env": "xor", "data.quality": "good"}}},
    "methods": {"bc": {"options": {"algo": "bc", "algo.likelihood": "gaussian"}},
                "drawn": {"of": "bc", "options": {"algo.acting": "sample"}},
                "late": {"options": {"algo": "bc"}}},
}  # fmt: skip


@pytest.fixture
def board(workplace):
    """Every cell but those of `late` has run, in this process."""
    chosen = suite.parse("test", CONTENT)
    given = {"hardware.threads": 1, "hardware.device": "cpu"}
    folder = Folder.open(workplace / "out", chosen)
    made = Board(chosen, chosen.cells(1, given), given, folder)
    for cell in made.cells:
        if cell.method.label != "late":
            made.job(cell)()
            assert made.note(cell, stopped=False, how="")["status"] == "finished"
    yield made
    folder.close()


def test_only_actions_in_a_plane_are_drawn_the_data_and_each_finished_method(board, tmp_path):
    (path,) = modes.draw(board, tmp_path)
    assert path.name == "modes_turning.png"
    with Image.open(path) as image:
        image.verify()
    cells = [cell for cell in board.cells if modes.is_plane(board, cell)]
    assert [cell.method.label for cell in cells] == ["bc", "drawn"]
    panels = dict(modes.actions(board, cells))
    assert list(panels) == ["data", "bc", "drawn"]
    corners = 0.8 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    nearest = np.linalg.norm(panels["data"][:, None] - corners, axis=-1)
    assert nearest.min(1).max() < 0.25 and set(nearest.argmin(1)) == {0, 1, 2, 3} and len(panels["data"]) < 150
    spread = {name: float(np.ptp(points, axis=0).max()) for name, points in panels.items()}
    assert spread["bc"] == 0 and spread["drawn"] > 0.1  # of one context, by the options of either row
    assert panels["drawn"].shape == (modes.SAMPLES, 2)
