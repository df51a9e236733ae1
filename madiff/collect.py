"""python -m madiff.collect: record a behaviour policy's episodes into one HDF5 file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from madiff import build, collection, configuration
from madiff.data.store import EpisodeStore
from madiff.experiment import durable, runtime
from madiff.interfaces import UserError
from madiff.schema import CollectConfig, shown

console = Console()
say = partial(console.print, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    return configuration.main(VERB, build.defaults(), sys.argv[1:] if arguments is None else arguments)


def collect(config: CollectConfig) -> None:
    machine = runtime.setup(config.hardware.device, config.hardware.threads or 0, say=say)
    problem = build.make_problem(config.env, config.agents, config.scenario, machine.device)
    build.check_quality(config.data.quality, problem)
    check_target(config.out, config.overwrite)
    spec, data = problem.spec, config.data
    store = collection.collect(
        spec.name, spec.options, data.quality, data.episodes, data.seed, machine.device, collection.console.is_terminal
    )
    store.save(config.out)
    print_card(store)
    say(f"written to {config.out}")


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse before the work what could not be written after it."""
    if out.is_dir():
        raise UserError(f"{out} is a folder", "out", "a file to write")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already", "out", "another path, or overwrite=true")
    durable.check_place(out, "out")


def print_card(store: EpisodeStore) -> None:
    table = Table("", "", title="data card", show_header=False)
    table.columns[1].overflow = "fold"
    for key, value in store.card.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else shown(value))
    console.print(table)


VERB = configuration.Verb(
    "collect",
    "record a behaviour policy's episodes into one HDF5 file",
    CollectConfig,
    collect,
    [
        "python -m madiff.collect env=smac-like agents=3 data.quality=good data.episodes=500 out=good.h5",
        "python -m madiff.collect env=smac-like scenario=2s3z data.quality=medium+poor out=mixed.h5 overwrite=true",
    ],
)

if __name__ == "__main__":
    sys.exit(main())
