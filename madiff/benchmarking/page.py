"""One HTML page of benchmarks and runs: everything inside it, no script, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from madiff.benchmarking.aggregate import Results
from madiff.benchmarking.answers import answer_tables
from madiff.benchmarking.folder import SUITE, read
from madiff.benchmarking.tables import Table, estimate, tables
from madiff.experiment import run_directory
from madiff.interfaces import UserError

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #1a1a1a }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em } section { border-top: 2px solid #ccc; margin-top: 3em }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { border: 1px solid #ddd; padding: .25em .6em; text-align: right; white-space: nowrap }
th { background: #f3f5f7 } th:first-child, td:first-child { text-align: left } .note { color: #555; font-size: 13px }
td.text { text-align: left; white-space: normal; font-family: ui-monospace, monospace; font-size: 12px }
img { max-width: 100%; height: auto; display: block; margin: 1em 0 } details { margin: 1em 0 }
summary { cursor: pointer; font-weight: 600 }
"""
KINDS = {".png": "image/png", ".gif": "image/gif"}
LARGEST = 8 * 2**20  # bytes of a film that is still laid into the page


def page(folders: Sequence[Path], title: str) -> str:
    """The page of these folders, each a benchmark or a run directory; raises UserError for any other."""
    body = "".join(benchmark(path) if (path / SUITE).exists() else run(path) for path in folders)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def benchmark(path: Path) -> str:
    """A benchmark's tables, plots, failures, and every cell with the line that repeats it."""
    suite, told, records = read(path / SUITE), read(path / "aggregates.json"), read_list(path / "results.json")
    if suite is None or told is None or records is None:
        raise UserError(f"{path} holds no results that can be read", "report", "a folder of madiff.benchmark")
    results = Results(suite, {}, records, {})
    made = "".join(table.html() for table in (*tables(results, told), *answer_tables(results, told)))
    about = "".join(f"<p>{escape(' '.join(text.split()))}</p>" for text in (suite["about"], suite["same_for_all"]))
    return (
        f"<section><h2>Benchmark {escape(suite['suite'])}</h2>{about}"
        f"<p class=note>Left out: {escape(' '.join(suite['leaves_out'].split()))}</p>"
        f"{definitions(suite)}{made}{images(sorted((path / 'plots').glob('*.png')))}{cells(records)}"
        f"{versions(suite['versions'])}</section>"
    )


def definitions(suite: Mapping[str, Any]) -> str:
    """The tasks and methods in words, where the suite has some."""
    rows = [[name, entry["about"]] for kind in ("tasks", "methods") for name, entry in suite[kind].items()
            if entry["about"]]  # fmt: skip
    return text_table("Tasks and methods", ["name", "what it is"], rows) if rows else ""


def cells(records: Iterable[Mapping[str, Any]]) -> str:
    """Every cell of the benchmark: its numbers in short, and its command or the reason why there is none."""
    rows = []
    for record in records:
        measured = record["metrics"]
        shown = estimate(measured["return_mean"], measured["return_ci95"]) if "return_mean" in measured else ""
        seconds = f"{record['seconds']:.0f}" if "seconds" in record else ""
        told = record["command"] if record["reason"] is None else f"{record['reason']} ({record['command']})"
        rows.append([record["task"], record["label"], str(record["seed"]), record["status"], shown, seconds, told])
    columns = ["task", "method", "seed", "status", "return", "training seconds", "command, or why there is no number"]
    heading = f"<summary>All {len(rows)} cells, with their commands</summary>"
    return f"<details>{heading}{text_table('', columns, rows)}</details>"


def run(path: Path) -> str:
    """A run directory: its numbers, its plots and its film."""
    config, _ = run_directory.read(path)
    summary = read(path / "summary.json")
    if summary is None:
        raise UserError(f"{path} has no summary yet", "report", "a finished run")
    rows = [[summary["algo"], summary], *([name, row] for name, row in summary["baselines"].items())]
    if summary["behaviour_return_mean"] is not None:
        rows.append(["behaviour", {"return_mean": summary["behaviour_return_mean"]}])
    keys = ("score", "win_rate", "cost_mean", "plan_ms_batch1", "network_calls_per_decision", "parameters")
    shown = [key for key in keys if any(row.get(key) is not None for _, row in rows)]
    table = Table(
        "run", f"{summary['env']} {summary['scenario']}, {summary['data']} data, {summary['steps']} updates",
        ["method", "return (95 % interval)", *shown],
        [[name, with_interval(row), *(plain(row.get(key)) for key in shown)] for name, row in rows],
        [f"{summary['episodes']} episodes, training seed {summary['seed']}, last checkpoint."],
    )  # fmt: skip
    pictures = images([*sorted((path / "plots").glob("*.png")), path / "rollout.gif"])
    told = f"<details><summary>Configuration</summary><pre>{escape(json.dumps(config, indent=1))}</pre></details>"
    return (
        f"<section><h2>Run {escape(path.name)}</h2>{table.html()}{pictures}{told}"
        f"{versions(summary['versions'])}</section>"
    )


def with_interval(row: Mapping[str, Any]) -> str:
    return estimate(row["return_mean"], row["return_ci95"]) if row.get("return_ci95") else plain(row["return_mean"])


def plain(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def images(paths: Iterable[Path]) -> str:
    """Pictures laid into the page; a film too large for it is left out."""
    made = ""
    for path in paths:
        if path.exists() and path.stat().st_size <= LARGEST:
            data = base64.b64encode(path.read_bytes()).decode()
            made += f'<img alt="{escape(path.stem)}" src="data:{KINDS[path.suffix]};base64,{data}">'
    return made


def versions(found: Mapping[str, str]) -> str:
    return f"<p class=note>Made with {escape(', '.join(f'{name} {value}' for name, value in found.items()))}.</p>"


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose last column is text."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + f"<td class=text>{escape(text)}</td></tr>"
        for *cells, text in rows
    )
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"{heading}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def read_list(path: Path) -> list[dict[str, Any]] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None
