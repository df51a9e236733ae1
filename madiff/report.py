"""python -m madiff.report: one self-contained HTML page of benchmarks and runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from madiff import build, configuration
from madiff.benchmarking.page import page
from madiff.experiment import durable
from madiff.interfaces import UserError
from madiff.schema import ReportConfig

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    return configuration.main(VERB, build.defaults, sys.argv[1:] if arguments is None else arguments)


def report(config: ReportConfig) -> None:
    if not config.runs:
        raise UserError("not given", "runs", "folders of madiff.benchmark and madiff.train")
    if config.out.is_dir():
        raise UserError(f"{config.out} is a folder", "out", "a file to write")
    durable.check_place(config.out, "out")
    folders = [folder.expanduser().absolute() for folder in config.runs]
    text = page(folders, ", ".join(folder.name for folder in folders))
    with durable.disk_errors("write", config.out):
        config.out.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(config.out, text.encode())
    console.print(f"written to {config.out}", markup=False, highlight=False, soft_wrap=True)


VERB = configuration.Verb(
    "report",
    "make one self-contained HTML page of benchmarks and runs",
    ReportConfig,
    report,
    [
        "python -m madiff.report runs/benchmark-coordination out=report.html",
        "python -m madiff.report runs/benchmark-coordination runs/smac-like-3m-madiff-d-good-seed0",
    ],
    bare="runs",
)

if __name__ == "__main__":
    sys.exit(main())
