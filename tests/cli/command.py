"""Runs a verb in this process, as the shell would, and holds its complaints to one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import madiff
from madiff import collect, evaluate, train

ROOT = Path(madiff.__file__).parent.parent
VERBS = {"train": train, "collect": collect, "evaluate": evaluate}
TINY = [
    "env=smac-like", "agents=2", "hardware.device=cpu", "hardware.threads=1", "data.episodes=8", "train.steps=4",
    "train.log_every=2", "train.checkpoint_every=2", "train.evaluate_every=4", "train.evaluate_episodes=2",
    "evaluation.episodes=3", "algo.batch_size=4",
]  # fmt: skip


def run(verb: str, *arguments: str) -> int:
    return VERBS[verb].main(arguments)


def complaint(capsys, verb: str, *arguments: str) -> str:
    """The one line a refused command says on stderr."""
    capsys.readouterr()
    assert run(verb, *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def tiny(folder: Path, *arguments: str) -> Sequence[str]:
    """A training of seconds in `folder`."""
    return [*TINY, f"run_dir={folder}", *arguments]
