"""One HTML page of benchmarks and runs: everything inside it, no script, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from madiff.benchmarking import commands, difference, drawing
from madiff.benchmarking.aggregate import Results, aggregate
from madiff.benchmarking.answers import answer_tables, answers
from madiff.benchmarking.difference import Change
from madiff.benchmarking.folder import SUITE, read, read_episodes, told_by, with_episodes
from madiff.benchmarking.sides import Side
from madiff.benchmarking.table import EMPTY, Table
from madiff.benchmarking.tables import estimate, tables
from madiff.experiment import run_directory
from madiff.experiment.frontier_plot import frontier
from madiff.experiment.statistics import bootstrap_ci
from madiff.interfaces import UserError

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #1a1a1a }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em } section { border-top: 2px solid #ccc; margin-top: 3em }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { border: 1px solid #ddd; padding: .25em .6em; text-align: right; white-space: nowrap }
th { background: #f3f5f7 } th:first-child, td:first-child { text-align: left } .note { color: #555; font-size: 13px }
td.better { background: #d9efe3; color: #00543c; font-weight: 600 }
td.worse { background: #fbe0d3; color: #8a3400; font-weight: 600 }
td.text, code { text-align: left; white-space: normal; font-family: ui-monospace, monospace; font-size: 12px }
td.text { min-width: 24em; overflow-wrap: anywhere } th.text { text-align: left }
.long { white-space: normal; min-width: 14em }
img { max-width: 100%; height: auto; display: block } details { margin: 1em 0 } figure { margin: 1em 0 }
figcaption { color: #555; font-size: 13px } .films { display: flex; flex-wrap: wrap; gap: 1em }
.films figure { flex: 0 1 360px; margin: 0 } summary { cursor: pointer; font-weight: 600 }
pre { overflow-x: auto; font-size: 12px }
"""
COLUMNS = {
    "score": "score", "win_rate": "win rate", "arrival_rate": "arrive", "cost_mean": "cost",
    "plan_ms_batch1": "ms a decision", "network_calls_per_decision": "network calls a decision",
    "parameters": "parameters",
}  # fmt: skip
KINDS = {".png": "image/png", ".gif": "image/gif"}
FILMS = ("rollout.gif", "denoising.gif", "plans.png")
LARGEST = 8 * 2**20  # bytes of a film that is still laid into the page
ROOM = 48 * 2**20  # bytes of all films of a page


@dataclass
class Room:
    """What is left of a page for films, and those that found no place in it."""

    left: int = field(default_factory=lambda: ROOM)
    refused: list[str] = field(default_factory=list)

    def take(self, path: Path, caption: str) -> bool:
        size = path.stat().st_size
        if size > min(self.left, LARGEST):
            self.refused.append(caption)
            return False
        self.left -= size
        return True


def page(folders: Sequence[Path], title: str) -> str:
    """The page of these folders, each a benchmark or a run directory; raises UserError for any other."""
    room = Room()
    return document(title, "".join(
        benchmark(path, room) if (path / SUITE).exists() else run(path, room) for path in folders
    ))  # fmt: skip


def comparison(a: Side, b: Side, found: Sequence[Change]) -> str:
    """The page of what changed between two folders."""
    made = "".join(table.html() for table in difference.difference_tables(a, b, found))
    with TemporaryDirectory() as folder:
        drawn = pictures(difference.draw(found, Path(folder)))
    head = "".join(f"<p>{name}: {escape(str(one.path))} ({one.kind})</p>" for name, one in (("A", a), ("B", b)))
    return document(f"{a.path.name} and {b.path.name}", f"<section>{head}{made}{drawn}</section>")


def document(title: str, body: str) -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def benchmark(path: Path, room: Room) -> str:
    """A benchmark's tables, plots, films, failures, and every cell with the line that repeats it."""
    results, told = told_by(path)
    suite = results.suite
    try:
        made = every_table(results, told)
    except KeyError:  # an earlier version said less of the same episodes
        results = with_episodes(results, path)
        told = aggregate(results) | answers(results)
        made = every_table(results, told)
    about = "".join(f"<p>{escape(' '.join(text.split()))}</p>" for text in (suite["about"], suite["same_for_all"]))
    return (
        f"<section><h2>Benchmark {escape(suite['suite'])}</h2>{about}"
        f"<p class=note>Left out: {escape(' '.join(suite['leaves_out'].split()))}</p>"
        f"{definitions(suite)}{''.join(table.html() for table in made)}{plots(path, results, told)}"
        f"{films(cell_films(path, results.records), room)}"
        f"{cells(results.records)}{environment(facts(results))}</section>"
    )


def every_table(results: Results, told: Mapping[str, Any]) -> list[Table]:
    return [*tables(results, told), *answer_tables(results, told)]


def definitions(suite: Mapping[str, Any]) -> str:
    """The tasks and methods in words, where the suite has some."""
    rows = [[name, entry["about"]] for kind in ("tasks", "methods") for name, entry in suite[kind].items()
            if entry["about"]]  # fmt: skip
    return text_table("Tasks and methods", ["name", "what it is"], rows) if rows else ""


def plots(path: Path, results: Results, told: Mapping[str, Any]) -> str:
    """The benchmark's pictures; drawn now where it has not come to its end, which draws them."""
    if found := sorted((path / "plots").glob("*.png")):
        return pictures(found)
    with TemporaryDirectory() as folder:
        return pictures(drawing.draw(results, told, Path(folder)))


def cell_films(path: Path, records: Iterable[Mapping[str, Any]]) -> list[tuple[Path, str]]:
    """The films of the first seed of every row, with what they show."""
    found: dict[tuple[str, str], list[tuple[Path, str]]] = {}
    for record in records:
        if record["status"] == "finished" and (record["task"], record["label"]) not in found:
            name = f"{record['task']}, {record['label']}, seed {record['seed']}"
            if made := films_in(path / record["run_dir"], name):
                found[record["task"], record["label"]] = made
    return [film for made in found.values() for film in made]


def films_in(folder: Path, name: str) -> list[tuple[Path, str]]:
    return [(folder / film, f"{name}: {Path(film).stem}") for film in FILMS if (folder / film).exists()]


def cells(records: Sequence[Mapping[str, Any]]) -> str:
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


def facts(results: Results) -> dict[str, str]:
    """Where the cells ran: environments, devices, options of all cells, versions."""
    found = [record for record in results.records if record["status"] == "finished"]
    tasks = {r["task"]: f"{r['env']} {r['scenario']}, {r['data']} data, {r['episodes']} episodes" for r in found}
    options = " ".join(f"{key}={value}" for key, value in results.suite.get("options", {}).items())
    devices = ", ".join(sorted({r["device"] for r in found}))
    return {**tasks, "device": devices, "options of all cells": options, **results.suite["versions"]}


def run(path: Path, room: Room) -> str:
    """A run directory: its numbers, its command, its plots, its evaluations, its films."""
    config, _ = run_directory.read(path)
    summary = read(path / "summary.json")
    if summary is None:
        raise UserError(f"{path} has no summary yet", "report", "a finished run")
    rows = {summary["algo"]: summary, **summary["baselines"]}
    if summary["behaviour_return_mean"] is not None:
        rows["behaviour"] = summary.get("behaviour") or {"return_mean": summary["behaviour_return_mean"]}
    shown = {key: name for key, name in COLUMNS.items() if any(row.get(key) is not None for row in rows.values())}
    table = Table(
        "run", f"{summary['env']} {summary['scenario']}, {summary['data']} data, {summary['steps']} updates",
        ["method", "return (95 % interval)", *shown.values()],
        [[name, with_interval(row), *(plain(row.get(key)) for key in shown)] for name, row in rows.items()],
        [f"{summary['episodes']} episodes, training seed {summary['seed']}, last checkpoint, "
         f"{summary['wall_seconds']:,.0f} seconds of training."],
    )  # fmt: skip
    evaluations = read_evaluations(path)
    found = films_in(path, path.name) + [film for name in evaluations
                                         for film in films_in(path / "evaluations" / name, name)]  # fmt: skip
    told = f"<details><summary>Configuration</summary><pre>{escape(json.dumps(config, indent=1))}</pre></details>"
    given = " ".join(f"{key}={value}" for key, value in config["env"].items() if key != "name")
    where = {"environment": f"{summary['env']} {summary['scenario']} {given}".strip(), "device": summary["device"]}
    return (
        f"<section><h2>Run {escape(path.name)}</h2>{table.html()}{command(commands.training(config))}"
        f"{evaluation_table(path, evaluations)}{pictures(sorted((path / 'plots').glob('*.png')))}"
        f"{scatter(path, summary, evaluations)}{films(found, room)}{told}{environment(where | summary['versions'])}"
        "</section>"
    )


def command(line: str | None) -> str:
    return f"<p>The command: <code>{escape(line)}</code></p>" if line else ""


def read_evaluations(path: Path) -> dict[str, dict[str, Any]]:
    """The evaluations of a run that lie in its folder, by name."""
    found = {file.parent.name: read(file) for file in sorted(path.glob("evaluations/*/evaluation.json"))}
    return {name: told for name, told in found.items() if told is not None}


def evaluation_table(path: Path, evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """How the run did with other options, each evaluation with its command."""
    rows = []
    for name, told in evaluations.items():
        violating = [(told.get(group) or {}).get("violating") for group in ("plan_violations", "rollout_violations")]
        shares = [EMPTY if share is None else f"{share:.1%}" for share in violating]
        rows.append([name, str(told["episodes"]), with_interval(told), plain(told.get("cost_mean")), *shares,
                     plain(told["plan_ms_batch1"]), commands.evaluation(told, path) or ""])  # fmt: skip
    columns = ["evaluation", "episodes", "return (95 % interval)", "cost", "plans in violation",
               "episodes in violation", "ms a decision", "command"]  # fmt: skip
    return text_table("Evaluations", columns, rows) if rows else ""


def scatter(path: Path, summary: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return against cost of the run, what was beside it and its evaluations, where cost means anything."""
    if summary.get("cost_mean") is None:
        return ""
    points = {}
    for name in ("", *evaluations):
        episodes = read_episodes(path / "evaluations" / name / "episodes.jsonl" if name else path / "episodes.jsonl")
        for policy in dict.fromkeys(episode["policy"] for episode in episodes):
            own = [episode for episode in episodes if episode["policy"] == policy]
            if not name or policy == summary["algo"]:
                points[name or policy] = tuple(spot([e[key] for e in own]) for key in ("cost", "return"))
    with TemporaryDirectory() as folder:
        task, file = f"{summary['env']} {summary['scenario']}", Path(folder) / "return_cost.png"
        frontier({task: points}, list(points), file, "Return against cost, 95% intervals")
        return figure(file, "return against cost")


def spot(values: Sequence[float]) -> tuple[float, float, float]:
    return sum(values) / len(values), *bootstrap_ci(values)


def with_interval(row: Mapping[str, Any]) -> str:
    return estimate(row["return_mean"], row["return_ci95"]) if row.get("return_ci95") else plain(row["return_mean"])


def plain(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def pictures(paths: Sequence[Path]) -> str:
    made = "".join(figure(path, path.stem.replace("_", " ")) for path in paths)
    return f"<h3>Pictures</h3>{made}" if made else ""


def films(found: Sequence[tuple[Path, str]], room: Room) -> str:
    """Films and their captions, as many as the page has room for; the others are named."""
    told = len(room.refused)
    made = "".join(figure(path, caption) for path, caption in found if room.take(path, caption))
    left = f"<p class=note>Too large for this page: {escape('; '.join(room.refused[told:]))}.</p>"
    left = left if room.refused[told:] else ""
    return f"<h3>Films</h3><div class=films>{made}</div>{left}" if found else ""


def figure(path: Path, caption: str) -> str:
    """A picture laid into the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(caption)}" src="data:{KINDS[path.suffix]};base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def environment(found: Mapping[str, str]) -> str:
    rows = [[name, str(value)] for name, value in found.items() if value]
    return text_table("Environment and versions", ["what", "value"], rows)


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose last column is text."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns[:-1])
    head += f"<th class=text>{escape(columns[-1])}</th>"
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + f"<td class=text>{escape(text)}</td></tr>"
        for *cells, text in rows
    )
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"{heading}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
