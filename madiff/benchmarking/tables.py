"""The tables of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from madiff.benchmarking.aggregate import Results
from madiff.benchmarking.table import EMPTY, Table

WIDEST = 16  # columns; a table with more is turned on its side
WORDS = {"failed": "failed on", "does not fit": "does not fit", "left out": "left out on"}


def tables(results: Results, told: Mapping[str, Any]) -> list[Table]:
    """Every table that has something to say; `told` is what `aggregate` made of `results`."""
    made = [
        returns(results, told), published(results, told), wins(results, told),
        *(safety(results, told, task) for task in results.tasks), together(results, told), over_best(results, told),
        shifts(results, told), shares(results, told), effort(results, told), decisions(results, told),
        training(results, told),
    ]  # fmt: skip
    idle = not_begun(results)
    shown = [table.without(idle) for table in made if table.rows]
    return [table.turned() if len(table.columns) > WIDEST else table for table in shown if table.rows]


def not_begun(results: Results) -> set[str]:
    """Tasks and methods of which all cells that can be run still wait, where others do not."""
    begun = [record for record in results.records if record["status"] in ("finished", "failed")]
    waiting = [record for record in results.records if record["status"] == "waiting"]
    names = (record[key] for record in waiting for key in ("task", "label"))
    return set(names) - {record[key] for record in begun for key in ("task", "label")} if begun else set()


def returns(results: Results, told: Mapping[str, Any]) -> Table:
    def shown(task: str, label: str) -> str:
        cell = told["cells"][task].get(label)
        if cell is None:
            return EMPTY
        seeds = "" if cell["seeds"] == results.suite["seeds"] else f" ({cell['seeds']} of {results.suite['seeds']})"
        rising = "†" if cell["not_flattened"] else ""
        return estimate(cell["return_mean"], cell["return_ci95"]) + rising + seeds

    rows = [
        [task, *map(number, scale(told["tasks"][task])), *(shown(task, label) for label in results.labels)]
        for task in results.tasks
    ]
    notes = [
        f"Mean team return an episode, last checkpoint, with 95 % intervals (bootstrap) over {over(results)}.",
        results.suite["same_for_all"],
        f"Left out: {results.suite['leaves_out']}",
    ]
    if any(cell["not_flattened"] for row in told["cells"].values() for cell in row.values()):
        notes.append("† the learning curve of at least one seed was still rising: its last quarter lies above the "
                     "third by more than the noise of its points.")  # fmt: skip
    return Table("returns", "Returns", ["task", "random", "data", "best", *results.labels], rows, notes + gaps(results))


def over(results: Results) -> str:
    seeds = results.suite["seeds"]
    return (
        "episodes; one training seed says nothing of the luck of training"
        if seeds == 1
        else (f"{seeds} training seeds and their episodes")
    )


def scale(task: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Returns of the behaviour at 0, of the one that made the data, and of the one at 1."""
    zero, one = ((task[end]["return_mean"] if end in task else None) for end in ("zero", "one"))
    return zero, task["behaviour"] if task["behaviour"] is not None else task.get("data_return_mean"), one


def gaps(results: Results) -> list[str]:
    """Why there is no number: one line for each reason, with the cells it holds for."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for record in results.records:
        if record["status"] in WORDS:
            key = record["label"], record["status"], record["reason"]
            task = record["task"] + (f" seed {record['seed']}" if record["status"] == "failed" else "")
            found.setdefault(key, []).append(task)
    alike: dict[tuple[str, str], list[str]] = {}
    for (label, status, why), where in found.items():
        alike.setdefault((f"{WORDS[status]} {', '.join(dict.fromkeys(where))}", why), []).append(label)
    lines = [f"{EMPTY} {', '.join(labels)} {what}: {why}" for (what, why), labels in alike.items()]
    waiting = sum(record["status"] == "waiting" for record in results.records)
    return lines + ([f"{waiting} of {len(results.records)} cells have not been run yet."] if waiting else [])


def per_task(results: Results, told: Mapping[str, Any], key: str, form: str) -> list[list[str]]:
    """Rows of the tasks where some method has this number."""
    rows = []
    for task in results.tasks:
        values = [told["cells"][task].get(label, {}).get(key) for label in results.labels]
        if any(value is not None for value in values):
            rows.append([task, *(EMPTY if value is None else format(value, form) for value in values)])
    return rows


def published(results: Results, told: Mapping[str, Any]) -> Table:
    rows = per_task(results, told, "score", ".1f")
    return Table("scores", "Scores as published for these environments", ["task", *results.labels], rows)


def wins(results: Results, told: Mapping[str, Any]) -> Table:
    return Table("wins", "Win rate", ["task", *results.labels], per_task(results, told, "win_rate", ".0%"))


def safety(results: Results, told: Mapping[str, Any], task: str) -> Table:
    """Return against cost and violation on a task where cost means anything; a row a method."""
    cells = {label: cell for label, cell in told["cells"][task].items() if cell["cost_mean"] is not None}
    shares = {"over_limit": "episodes over the limit", "plans_violating": "plans in violation",
              "episodes_violating": "episodes in violation", "trapped": "plans trapped",
              "arrival_rate": "agents that arrive"}  # fmt: skip
    known = [key for key in shares if any(cell[key] is not None for cell in cells.values())]
    rows = [
        [label, EMPTY if cell["cost_limit"] is None else f"{cell['cost_limit']:g}",
         estimate(cell["return_mean"], cell["return_ci95"]), estimate(cell["cost_mean"], cell["cost_ci95"]),
         *(EMPTY if cell[key] is None else f"{cell[key]:.1%}" for key in known), number(cell["plan_ms_batch1"])]
        for label, cell in cells.items()
    ]  # fmt: skip
    columns = ["method", "limit", "return", "cost", *(shares[key] for key in known), "ms a decision"]
    notes = [
        f"Means an episode, last checkpoint, with 95 % intervals (bootstrap) over {over(results)}.",
        "Violation of a constraint in the plans that were carried out, and in the episodes that came of them, are two "
        "numbers: a plan within bounds is no promise that the agent stays within them.",
    ]  # fmt: skip
    return Table(f"safety_{task}", f"Safety: {task}", columns, rows, notes)


def together(results: Results, told: Mapping[str, Any]) -> Table:
    base, rows = results.suite["reference"], []
    for label in results.labels:
        row, better = told["labels"][label], told["improvement"].get(label)
        if row["tasks"]:
            chance = EMPTY if better is None else f"{better['probability']:.0%} {percent(better['probability_ci95'])}"
            rows.append([label, f"{row['tasks']} of {len(results.tasks)}", estimate(row["iqm"], row["iqm_ci95"]),
                         estimate(row["mean"], row["mean_ci95"]), chance])  # fmt: skip
    notes = [
        "Scores are normalised in each task: 0 is the return of its behaviour 'random', 1 that of its best scripted "
        "behaviour, both measured on the same episodes (columns of the first table, unless the suite says otherwise). "
        "IQM: mean of the middle half of all runs. Intervals: stratified bootstrap. Rows over different tasks do not "
        "compare.",
        f"Better than {base}: probability that on a random task the same seed returns more, ties counted half.",
    ]
    columns = ["method", "tasks", "IQM (95 % interval)", "mean", f"better than {base}"]
    return Table("together", "All tasks together, normalised", columns, rows, notes)


def over_best(results: Results, told: Mapping[str, Any]) -> Table:
    labels = [label for label in results.labels if label not in results.suite["baselines"]]
    rows = []
    for task in results.tasks:
        found = told["over_best_baseline"][task]
        values = [found.get("labels", {}).get(label) for label in labels]
        if any(values):
            rows.append([task, found["baseline"], *(EMPTY if v is None else advantage(v) for v in values)])
    notes = [
        "Return less that of the best baseline of the task, with the same seeds and episodes; an interval without 0 "
        "is a difference that more seeds and episodes would hardly undo. P: probability of improvement, that the same "
        "seed returns more in the same episode, ties counted half. The best baseline is chosen after the fact, which "
        "favours it."
    ]
    return Table("over_best_baseline", "Over the best baseline", ["task", "baseline", *labels], rows, notes)


def advantage(found: Mapping[str, Any]) -> str:
    low, high = found["probability_ci95"]
    more = estimate(found["difference"], found["difference_ci95"], "+")
    return f"{more}, P {found['probability']:.2f} [{low:.2f}, {high:.2f}]"


def shifts(results: Results, told: Mapping[str, Any]) -> Table:
    rows = []
    for task, found in told["shifts"].items():
        for shift, lost in found.items():
            shown = [
                EMPTY if (v := lost.get(label)) is None
                else estimate(v["drop"], v["drop_ci95"]) + ("" if v["relative"] is None else f" {v['relative']:.0%}")
                for label in results.labels
            ]  # fmt: skip
            rows.append([task, shift, *shown])
    notes = ["Return lost when the environment changes at test time only, on the same episodes, and as a part of the "
             "normalised range; negative: gained."]  # fmt: skip
    return Table("shifts", "Drop under shift", ["task", "shift", *results.labels], rows, notes)


def shares(results: Results, told: Mapping[str, Any]) -> Table:
    rows = []
    for family, labels in told["shares"].items():
        points = {(label, p["share"]): p for label, found in labels.items() for p in found}
        for share in sorted({share for _, share in points}, reverse=True):
            found = [points.get((label, share)) for label in results.labels]
            shown = [EMPTY if p is None else estimate(p["return_mean"], p["return_ci95"]) for p in found]
            rows.append([family, f"{share:.0%}", *shown])
    notes = ["Every smaller share lies within every larger one."]
    return Table("shares", "Return against share of the data", ["task", "share", *results.labels], rows, notes)


def effort(results: Results, told: Mapping[str, Any]) -> Table:
    rows = []
    for label in results.labels:
        cells = [row[label] for row in told["cells"].values() if label in row]
        if cells:
            columns = ("plan_ms_batch1", "network_calls_per_decision", "parameters", "updates", "seconds")
            rows.append([label, *(span([cell[key] for cell in cells]) for key in columns)])
    notes = ["From the least to the largest over tasks. Times are of one thread while the other workers ran."]
    columns = ["method", "ms a decision", "network calls a decision", "parameters", "updates", "training seconds"]
    return Table("effort", "Effort", columns, rows, notes)


def decisions(results: Results, told: Mapping[str, Any]) -> Table:
    notes = ["Median of one decision of the whole team in one environment, mean over seeds."]
    rows = per_task(results, told, "plan_ms_batch1", ".3g")
    return Table("decision_time", "Milliseconds a decision", ["task", *results.labels], rows, notes)


def training(results: Results, told: Mapping[str, Any]) -> Table:
    """Seconds of training of the methods that are trained, and milliseconds an update, task by task."""

    def shown(cell: Mapping[str, Any] | None) -> str:
        return EMPTY if cell is None else f"{cell['seconds']:,.0f} s ({1e3 * cell['seconds'] / cell['updates']:.3g} ms)"

    trained = [label for label in results.labels if not results.suite["methods"][label].get("of")]
    tasks = [task for task in results.tasks if any(label in told["cells"][task] for label in trained)]
    rows = [[label, *(shown(told["cells"][task].get(label)) for task in tasks)] for label in trained
            if any(label in told["cells"][task] for task in tasks)]  # fmt: skip
    notes = [
        "Mean over seeds of the whole training, points of the learning curve included, and its part an update. Times "
        "are of one thread while the other workers ran; rows of another's weights cost no training."
    ]
    return Table("training", "Training time", ["method", *tasks], rows, notes)


def number(value: float | None) -> str:
    return EMPTY if value is None else format(value, f".{decimals(value)}f")


def estimate(mean: float, interval: Sequence[float], sign: str = "") -> str:
    """A number with its interval, all to the same place."""
    form = f".{decimals(mean, *interval)}f"
    return f"{mean:{sign}{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def decimals(*values: float) -> int:
    """Places behind the point that leave about four digits of the largest value."""
    return next((places for places, least in enumerate((1000, 100, 10)) if max(map(abs, values)) >= least), 3)


def percent(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.0%}, {interval[1]:.0%}]"


def span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return EMPTY
    least, most = (f"{v:,.0f}" if abs(v) >= 100 else f"{v:.2g}" for v in (min(known), max(known)))
    return least if least == most else f"{least} to {most}"
