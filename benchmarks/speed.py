"""Speed side by side: `python -m benchmarks.speed qp|env|plan|train|all [out=FILE.json]`.

Ours, the peer and their ratio in one run, in alternation, so that a drifting machine does not favour either; the
figure is the median of the rounds. A peer that is not installed is a row saying so (`make bench-peers`).
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import environment, planning, qp
from madiff.interfaces import UserError

SUITES: dict[str, Callable[[], list[dict]]] = {
    "qp": qp.rows,
    "env": environment.rows,
    "plan": planning.decision_rows,
    "train": planning.train_rows,
}


def parse(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The suites to run and the file to write."""
    names = [a for a in arguments if "=" not in a] or ["all"]
    options = dict(a.split("=", 1) for a in arguments if "=" in a)
    unknown = [n for n in names if n not in (*SUITES, "all")] + [k for k in options if k != "out"]
    if unknown:
        raise UserError(f"unknown argument {unknown[0]!r}", "benchmarks.speed", (*SUITES, "all", "out=FILE.json"))
    chosen = list(SUITES) if "all" in names else names
    return chosen, Path(options["out"]) if "out" in options else None


def show(row: dict) -> None:
    peer = row["peer"] if isinstance(row["peer"], str) else f"{row['peer']:,.4g}"
    ratio = f"{row['ratio']:.2f}x" if row["ratio"] is not None else "-"
    print(f"{row['name']:<58} ours {row['ours']:>12,.4g}  peer {peer:>14}  {ratio:>8}  {row['unit']}", flush=True)


def main(arguments: list[str]) -> int:
    try:
        suites, out = parse(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = []
    for suite in suites:
        for row in SUITES[suite]():
            show(row)
            rows.append(row)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
