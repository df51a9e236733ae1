"""Speed side by side: `python -m benchmarks.speed qp|env|plan|train|reference|libraries|all [out=FILE.json]`.

Ours, the peer and their ratio in one run, in alternation, so that a drifting machine does not favour either; the
figure is the median of the rounds. A peer that is not installed is a row saying so (`make bench-peers`). FILE.json is
written anew after every row, so that a run that is stopped keeps what it has; FILE.png beside it shows the ratios.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import against_reference, environment, libraries, picture, planning, qp
from madiff.experiment import durable
from madiff.interfaces import UserError

SUITES: dict[str, Callable[[], Iterator[dict]]] = {
    "qp": qp.rows,
    "env": environment.rows,
    "plan": planning.decision_rows,
    "train": planning.train_rows,
    "reference": against_reference.rows,
    "libraries": libraries.rows,
}


def parse(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The suites to run and the file to write."""
    names = [a for a in arguments if "=" not in a] or ["all"]
    options = dict(a.split("=", 1) for a in arguments if "=" in a)
    unknown = [n for n in names if n not in (*SUITES, "all")] + [k for k in options if k != "out"]
    if unknown:
        raise UserError(f"unknown argument {unknown[0]!r}", "benchmarks.speed", (*SUITES, "all", "out=FILE.json"))
    chosen = list(SUITES) if "all" in names else names
    if "out" not in options:
        return chosen, None
    out = Path(options["out"])
    if out.suffix != ".json":
        raise UserError(f"{out} is no JSON file", "benchmarks.speed out", "out=FILE.json")
    durable.check_place(out, "benchmarks.speed out")
    return chosen, out


def show(row: dict) -> None:
    peer = row["peer"] if isinstance(row["peer"], str) else f"{row['peer']:,.4g}"
    ratio = f"{row['ratio']:.2f}x" if row["ratio"] is not None else "-"
    print(f"{row['name']:<58} ours {row['ours']:>12,.4g}  peer {peer:>14}  {ratio:>8}  {row['unit']}", flush=True)


def write(rows: list[dict], out: Path) -> None:
    with durable.disk_errors("write", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(out, (json.dumps(rows, indent=2) + "\n").encode())


def measure(suites: list[str], rows: list[dict], out: Path | None) -> None:
    """Append the rows of the suites to `rows`, shown and written one by one."""
    began = time.monotonic()
    for number, suite in enumerate(suites, 1):
        print(f"[{number}/{len(suites)}] {suite}, after {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
        for row in SUITES[suite]():
            show(row)
            rows.append({"suite": suite, **row})
            if out is not None:
                write(rows, out)


def main(arguments: list[str]) -> int:
    try:
        suites, out = parse(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows: list[dict] = []
    code = 0
    try:
        measure(suites, rows, out)
    except KeyboardInterrupt:
        print(f"stopped after {len(rows)} rows", file=sys.stderr)
        code = 130
    if out is not None and (drawn := picture.ratios(rows, out.with_suffix(".png"))):
        print(f"rows in {out}, drawn in {drawn}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
