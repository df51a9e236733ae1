"""What each method makes of data with several modes: its actions beside the data's, where these are points of a plane.

Drawn for tasks of one agent whose episodes are one step and whose actions have two dimensions, as the bandits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from madiff import build
from madiff.benchmarking.board import Board
from madiff.benchmarking.suite import Cell
from madiff.benchmarking.work import compose, compose_evaluation
from madiff.experiment import checkpoint
from madiff.experiment.comparison_plots import panel_grid
from madiff.experiment.plots import save

SAMPLES = 400
PLANE = {"agents": 1, "discrete": False, "action_size": 2, "episode_limit": 1}
PANEL = (2.6, 2.7)
CPU = torch.device("cpu")


def draw(board: Board, folder: Path) -> list[Path]:
    """A picture a task, with a panel for the data and one for every method that has finished on it."""
    made = []
    for task in board.suite.tasks:
        cells = [cell for cell in board.cells if cell.task.name == task and cell.seed == 0 and is_plane(board, cell)]
        if cells:
            made.append(picture(dict(actions(board, cells)), folder / f"modes_{task}.png", f"Actions on {task}"))
    return made


def is_plane(board: Board, cell: Cell) -> bool:
    """Whether a cell has finished, still has its run, and acts once and in the plane."""
    saved = checkpoint.latest(run_of(board, cell) / "checkpoints") if board.status(cell) == "finished" else None
    return saved is not None and all(saved.meta["spec"][key] == value for key, value in PLANE.items())


def run_of(board: Board, cell: Cell) -> Path:
    return board.folder.run(cell.source or cell)


def actions(board: Board, cells: list[Cell]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, actions (n, 2)) of the data, then of every cell's method, all in the context that the data begin with."""
    config = compose((cells[0].source or cells[0]).arguments)
    problem = build.make_problem(config.env, config.agents, config.scenario, CPU)
    store = build.make_store(config.data, problem)()
    seen = store.observations[store.offsets + torch.arange(store.episodes), 0]
    played = store.actions[store.offsets, 0]
    context = seen[0]
    yield "data", played[(seen == context).all(-1)][:SAMPLES].numpy()
    for cell in cells:
        yield cell.method.label, sampled(board, cell, context)


def sampled(board: Board, cell: Cell, context: torch.Tensor) -> np.ndarray:
    """Actions (SAMPLES, 2) of a cell's policy where it observes `context` (O,)."""
    changed: Mapping[str, Any] = compose_evaluation((*cell.arguments, "run=unknown")).algo if cell.source else {}
    policy = build.load_run(run_of(board, cell), CPU, changed).policy
    policy.reset(seed=0, n=SAMPLES)
    with torch.no_grad():
        return policy.act(context.expand(SAMPLES, 1, -1), None)[:, 0].numpy()


def picture(panels: Mapping[str, np.ndarray], out: Path, title: str) -> Path:
    """A scatter plot for each of panels, name -> points (n, 2) in [-1, 1]^2."""
    figure, axes = panel_grid(panels, title, PANEL)
    for name, axis in axes.items():
        axis.scatter(*panels[name].T, s=4, alpha=0.5, linewidths=0, color="black" if name == "data" else "#0072B2")
        axis.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    return save(figure, out)
