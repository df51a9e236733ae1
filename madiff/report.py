"""python -m madiff.report: one self-contained HTML page of benchmarks and runs, or what changed between two."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from madiff import build, configuration
from madiff.benchmarking import difference
from madiff.benchmarking.page import comparison, page
from madiff.benchmarking.sides import side
from madiff.experiment import durable
from madiff.interfaces import UserError
from madiff.schema import ReportConfig

PAGE = Path("report.html")
console = Console()
say = partial(console.print, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    return configuration.main(VERB, build.defaults, sys.argv[1:] if arguments is None else arguments)


def report(config: ReportConfig) -> None:
    if config.compare is not None:
        return compare(config, config.compare)
    if not config.runs:
        raise UserError("not given", "runs", "folders of madiff.benchmark and madiff.train")
    out = config.out or PAGE
    check_place(out)
    folders = [whole(folder) for folder in config.runs]
    write(out, page(folders, ", ".join(folder.name for folder in folders)))


def compare(config: ReportConfig, folders: Sequence[Path]) -> None:
    """Print what changed between two folders; with `out`, write it as a page too."""
    if config.runs:
        raise UserError("not of a comparison", "runs", "DIR..., or --compare A B")
    if len(folders) != 2:
        raise UserError(f"{len(folders)} folder{'' if len(folders) == 1 else 's'}", "compare", "two, as --compare A B")
    if config.out is not None:
        check_place(config.out)
    a, b = (side(whole(folder)) for folder in folders)
    difference.check_kinds(a, b)
    found = difference.changes(a, b)
    text = comparison(a, b, found) if config.out is not None else ""
    say(f"A: {a.path}\nB: {b.path}")
    for table in difference.difference_tables(a, b, found):
        say(f"\n{table.title}")
        console.print(table.terminal())
        for note in table.notes:
            say(note)
    if config.out is not None:
        write(config.out, text)


def whole(folder: Path) -> Path:
    return folder.expanduser().absolute()


def check_place(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"{out} is a folder", "out", "a file to write")
    durable.check_place(out, "out")


def write(out: Path, text: str) -> None:
    with durable.disk_errors("write", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(out, text.encode())
    say(f"written to {out}")


VERB = configuration.Verb(
    "report",
    "make one self-contained HTML page of benchmarks and runs, or say what changed between two",
    ReportConfig,
    report,
    [
        "python -m madiff.report runs/benchmark-coordination out=report.html",
        "python -m madiff.report runs/benchmark-coordination runs/smac-like-3m-madiff-d-good-seed0",
        "python -m madiff.report --compare runs/before runs/after out=changes.html",
    ],
    bare="runs",
    turns={"--compare": "compare"},
)

if __name__ == "__main__":
    sys.exit(main())
