"""What a suite compares: its YAML file, read, checked and unfolded into cells.

A suite holds options of `python -m madiff.train` and nothing else that decides a number: those of every cell
(`options`), of a task, of a method, and of a method on some tasks (patterns as in a shell); later ones win. A method
`of` another is that one's run, evaluated with other options, those of `python -m madiff.evaluate`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from madiff.benchmarking import questions
from madiff.benchmarking.questions import Curve, Effect
from madiff.data import stored
from madiff.interfaces import UserError
from madiff.schema import option, shown, structure

SUITES = Path(__file__).resolve().parent.parent.parent / "configs" / "suite"
RUNS = Path("cells")  # within a benchmark's folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # a folder's name on every system
Options = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Task:
    """A problem with its data and evaluation.

    zero, one: the behaviours whose returns become 0 and 1 on the normalised scale; both are measured and recorded.
    shifts: name -> options of the environment that change at test time only, e.g. {"slow": {"speed": 0.7}}.
    shares: unfolds the task into one for each share of its data set, a smaller share within every larger one.
    """

    name: str
    options: Options
    about: str = ""
    zero: str = "random"
    one: str = "expert"
    shifts: Mapping[str, Options] = field(default_factory=dict)
    shares: tuple[float, ...] = field(default=(), metadata={"minimum": 0, "maximum": 1})

    @property
    def share(self) -> float | None:
        return self.options.get("data.share")

    @property
    def family(self) -> str:
        """The name without its share of the data."""
        return self.name if self.share is None else self.name.removesuffix(share_suffix(self.share))

    def unfolded(self) -> list[Task]:
        return [
            replace(self, name=self.name + share_suffix(s), options={**self.options, "data.share": s}, shares=())
            for s in self.shares
        ] or [self]


@dataclass(frozen=True, eq=False)
class Method:
    """A row of the tables. tasks: pattern -> options on those tasks; not_on: pattern -> why it is not run there.

    of: the label of the method whose runs are evaluated again; all options are then those of madiff.evaluate.
    """

    label: str
    options: Options
    about: str = ""
    of: str = ""
    tasks: Mapping[str, Options] = field(default_factory=dict)
    not_on: Mapping[str, str] = field(default_factory=dict)

    def options_on(self, task: str) -> Options:
        merged = dict(self.options)
        for pattern, options in self.tasks.items():
            if fnmatchcase(task, pattern):
                merged |= options
        return merged

    def excuse(self, task: str) -> str | None:
        """Why the suite does not run this method on that task; None where it does."""
        return next((why for pattern, why in self.not_on.items() if fnmatchcase(task, pattern)), None)


@dataclass(frozen=True)
class Suite:
    """A comparison.

    leaves_out, same_for_all: printed with every table. seeds: unless the user says otherwise. reference: the label over
    which improvement is told; baselines: the labels of which the best is the bar in every task. effects, curves: see
    `questions`.
    """

    name: str
    about: str = option("what the suite is for")
    leaves_out: str = option("what it does not compare, and why")
    same_for_all: str = option("what is the same for all methods: networks, data, evaluation, tuning")
    seeds: int = option("training seeds of every cell", minimum=1)
    reference: str = option("the label over which improvement is told")
    baselines: tuple[str, ...] = option("labels of which the best is the bar in every task")
    tasks: Mapping[str, Any] = option("name -> task")
    methods: Mapping[str, Any] = option("label -> method")
    options: Options = field(default_factory=dict)
    effects: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)

    def cells(self, seeds: int, given: Options) -> list[Cell]:
        """Every task with every method, all of one seed before the next; `given` are the user's own options."""
        made: dict[tuple[str, str, int], Cell] = {}
        for seed in range(seeds):
            for task in self.tasks.values():
                for method in sorted(self.methods.values(), key=lambda method: bool(method.of)):
                    source = made.get((task.name, method.of, seed))
                    made[task.name, method.label, seed] = self.cell(task, method, seed, source, given)
        return list(made.values())

    def cell(self, task: Task, method: Method, seed: int, source: Cell | None, given: Options) -> Cell:
        own, common = method.options_on(task.name), {**self.options, **task.options}
        if source is None:
            options = {"evaluation.film": False, **common, **own, **given, "seed": seed, "train.baselines": []}
        else:
            options = {**own, **of_evaluation({**common, **given})}
        return Cell(task, method, seed, options, source)

    def problem(self, task: Task, given: Options) -> Cell:
        """A task without a method: what its data and references are made from."""
        options = {**self.options, **task.options, **given}
        kept = {key: value for key, value in options.items() if key.partition(".")[0] not in ("algo", "model", "train")}
        return Cell(task, Method("reference", {}), 0, kept)


@dataclass(frozen=True, eq=False)
class Cell:
    """A task, a method and a training seed.

    options: of madiff.train, by dotted key; of madiff.evaluate where there is a source, the cell whose run it takes.
    """

    task: Task
    method: Method
    seed: int
    options: Options
    source: Cell | None = None

    @property
    def name(self) -> str:
        return f"{self.task.name} {self.method.label} seed {self.seed}"

    @property
    def place(self) -> Path:
        return Path(self.task.name, self.method.label, f"seed{self.seed}")

    @property
    def cost_limit(self) -> float | None:
        """What an episode may cost, where the suite says so."""
        return self.options.get("cost_limit", self.options.get("algo.cost_limit"))

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(f"{key}={shown(value)}" for key, value in self.options.items())

    @property
    def command(self) -> str:
        """The line that repeats this cell by itself; an evaluation's, within the benchmark's folder."""
        if self.source is None:
            return shlex.join(["python", "-m", "madiff.train", *self.arguments])
        return shlex.join(["python", "-m", "madiff.evaluate", f"run={RUNS / self.source.place}", *self.arguments])


def of_evaluation(options: Options) -> dict[str, Any]:
    """What madiff.evaluate takes of options of madiff.train: episodes, their seed, and the hardware."""
    kept = {key: value for key, value in options.items() if key.startswith(("evaluation.", "hardware."))}
    return {key.removeprefix("evaluation."): value for key, value in kept.items() if key != "evaluation.film"}


def share_suffix(share: float) -> str:
    return f"-share{share:g}"


def names() -> list[str]:
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load(name: str) -> Suite:
    """The suite of this name, or of this YAML file; raises UserError for whatever is wrong with it."""
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if name not in names():
            raise UserError(f"no suite is called '{name}'", "suite", [*names(), "PATH.yaml"])
        path = SUITES / f"{name}.yaml"
    try:
        content = stored.read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())})", "suite", "a YAML file") from error
    return parse(path.stem, content)


def parse(name: str, content: Any) -> Suite:
    """The suite that a YAML file's content describes."""
    if not isinstance(content, Mapping):
        raise UserError("holds no mapping", f"suite {name}", "about, tasks, methods, ...")
    suite = structure(Suite, {**content, "name": checked_name(name, "suite")}, "")
    tasks = [
        unfolded for key, value in suite.tasks.items()
        for unfolded in section(Task, "name", key, value, f"tasks.{key}").unfolded()
    ]  # fmt: skip
    methods = [section(Method, "label", key, value, f"methods.{key}") for key, value in suite.methods.items()]
    asked = {
        kind: {str(key): section(cls, "name", key, value, f"{kind}.{key}") for key, value in found.items()}
        for kind, cls, found in (("effects", Effect, suite.effects), ("curves", Curve, suite.curves))
    }
    suite = replace(suite, tasks={task.name: task for task in tasks}, methods={m.label: m for m in methods}, **asked)
    check(suite)
    questions.check(suite)
    return suite


def section(cls: type, key: str, name: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError("is no section", where, "options: {...}")
    return structure(cls, {**value, key: checked_name(name, where)}, where)


def checked_name(name: Any, where: str) -> str:
    if not NAME.fullmatch(str(name)):
        raise UserError(f"'{name}' cannot name a folder", where, "letters, digits, . _ + -")
    return str(name)


def check(suite: Suite) -> None:
    """Names that stand for nothing are mistakes."""
    for label in (suite.reference, *suite.baselines):
        if label not in suite.methods:
            raise UserError(f"there is no method '{label}'", "reference and baselines", list(suite.methods))
    for method in suite.methods.values():
        if method.of and (method.of not in suite.methods or suite.methods[method.of].of):
            trained = [label for label, other in suite.methods.items() if not other.of]
            raise UserError(f"there is no trained method '{method.of}'", f"methods.{method.label}.of", trained)
    for task in suite.tasks.values():
        for shift, options in task.shifts.items():
            checked_name(shift, f"tasks.{task.name}.shifts")
            if not isinstance(options, Mapping):
                raise UserError("is no section", f"tasks.{task.name}.shifts.{shift}", "options of the environment")
    for method in suite.methods.values():
        for pattern in (*method.tasks, *method.not_on):
            if not any(fnmatchcase(task, pattern) for task in suite.tasks):
                raise UserError(f"'{pattern}' is no task", f"methods.{method.label}", list(suite.tasks))
        for pattern, options in method.tasks.items():
            if not isinstance(options, Mapping):
                raise UserError("is no section", f"methods.{method.label}.tasks.{pattern}", "options of the method")
