"""What can be known of a suite's cells before any of them runs: mistakes, and methods that do not fit their tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from madiff import assessment, build, guarding, safeguard_options
from madiff.benchmarking.suite import Cell, Task
from madiff.benchmarking.work import compose, compose_evaluation
from madiff.build import Problem
from madiff.interfaces import UserError
from madiff.schema import TrainConfig

CPU = torch.device("cpu")


Verdict = tuple[str, str]  # left out or does not fit, and why


def empty(cells: Sequence[Cell]) -> dict[Cell, Verdict]:
    """The cells that stay empty: left out in the suite's own words, or not fitting in the method's.

    Raises UserError for everything else that is wrong with a cell: that is a mistake in the suite or on the command
    line.
    """
    verdicts: dict[tuple[str, str], Verdict | None] = {}
    problems: dict[Task, Problem] = {}
    for cell in cells:
        key = cell.task.name, cell.method.label
        if key not in verdicts:
            verdicts[key] = verdict(cell, problems)
    told = {cell: verdicts[cell.task.name, cell.method.label] for cell in cells}
    return {cell: found for cell, found in told.items() if found}


def verdict(cell: Cell, problems: dict[Task, Problem]) -> Verdict | None:
    if excuse := cell.method.excuse(cell.task.name):
        return "left out", excuse
    if cell.source is not None:
        return verdict(cell.source, problems) or check_evaluation(cell)
    reason = refusal(cell, problems)
    return reason and ("does not fit", reason)


def check_evaluation(cell: Cell) -> None:
    """Raise UserError for options that madiff.evaluate would not take of any run."""
    try:
        safeguard_options.read(compose_evaluation((*cell.arguments, "run=unknown")).safe)
    except UserError as error:
        raise UserError(str(error), f"{cell.task.name} {cell.method.label}") from error


def refusal(cell: Cell, problems: dict[Task, Problem]) -> str | None:
    """Why the method cannot learn this environment, or not through its layer; None where it can."""
    try:
        config = compose(cell.arguments)
        problem = problems.get(cell.task) or problem_of(cell, config)
        problems[cell.task] = problem
        build.method_config(config.algo)
    except UserError as error:
        raise UserError(str(error), f"{cell.task.name} {cell.method.label}") from error
    try:
        guarding.check(build.make_learner(config.algo, problem.spec, CPU, cell.seed), config.safe, problem.spec)
    except UserError as error:
        return str(error)
    return None


def problem_of(cell: Cell, config: TrainConfig) -> Problem:
    """The cell's environment, whose behaviours and shifts are there."""
    problem = build.make_problem(config.env, config.agents, config.scenario, CPU)
    for quality in (cell.task.zero, cell.task.one):
        build.check_quality(quality, problem)
    if config.data.path is None:
        build.check_quality(config.data.quality, problem)
    for changes in cell.task.shifts.values():
        assessment.changed_problem(config, problem.spec, changes, CPU)
    return problem
