"""What each verb may be told: frozen dataclasses, and the function that makes them of plain mappings.

The numbers themselves live in `configs/*.yaml` (for methods: in their own `Config`); this file holds types, ranges
and meanings. It knows nothing of how the mapping was written down.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from madiff.interfaces import UserError

T = TypeVar("T")
Ends = tuple[float | None, float | None]  # smallest and largest legal value


LARGEST = 2**63 - 1  # whole number that tensors hold


def option(meaning: str, minimum: float | None = None) -> Any:
    """A field that must be given, with its one-line meaning and, for numbers, its smallest legal value."""
    return field(metadata={"meaning": meaning, "minimum": minimum})


def later(default: Any, meaning: str, minimum: float | None = None, maximum: float | None = None) -> Any:
    """A field that runs recorded by earlier versions lack: `default` there."""
    return field(default=default, metadata={"meaning": meaning, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True)
class Data:
    """Where the training episodes come from: a file, or behaviour of this quality collected in the environment."""

    quality: str = option("expert, good, medium, poor, replay or random; mixtures as medium+poor")
    episodes: int | None = option("null = 2000 collected, or all of a file", minimum=1)
    seed: int = option("seed of the collection", minimum=0)
    path: Path | None = option("read this file or folder instead of collecting")
    format: str = option("format of data.path; auto looks at the file")
    cache: Path | None = option("keeps collected data; null = $MADIFF_CACHE or ~/.cache/madiff")
    share: float | None = later(None, "train on this share of the episodes, drawn at random; null = all", 0, 1)


@dataclass(frozen=True)
class Training:
    """The loop's rhythm, in gradient updates."""

    steps: int | None = option("updates of every learner; null = each method's own number", minimum=1)
    log_every: int = option("updates between two records of metrics.jsonl", minimum=1)
    checkpoint_every: int = option("updates between two checkpoints", minimum=1)
    evaluate_every: int | None = option("updates between two points of the learning curve; null = 1/10", minimum=1)
    evaluate_episodes: int = option("episodes a point of the learning curve", minimum=1)
    baselines: tuple[str, ...] = option("methods trained beside it on the same data; [] = none")


@dataclass(frozen=True)
class Evaluation:
    """The final comparison; all policies meet the same episodes."""

    episodes: int = option("episodes of each policy in the final comparison", minimum=1)
    seed: int = option("seed of these episodes", minimum=0)
    film: bool = later(True, "also write rollout.gif")


@dataclass(frozen=True)
class Machine:
    """Where the work is done."""

    device: Literal["auto", "cpu", "cuda"] = option("auto takes CUDA where there is some")
    threads: int | None = option("CPU threads of torch; null = one a core", minimum=1)


@dataclass(frozen=True)
class Hardware(Machine):
    """Where the networks live, and how denoisers and inverse dynamics are computed (see docs/hardware.md)."""

    precision: Literal["float32", "bf16"] = later("float32", "of products in networks; weights and losses: float32")
    compile: bool = later(False, "torch.compile the networks")
    graphs: bool = later(False, "CUDA only: record sampling loops and replay them without Python")


@dataclass(frozen=True)
class TrainConfig:
    """`python -m madiff.train`; `env` and `algo` hold a name and the options of that environment or method.

    `safe` holds likewise what a policy is trained through, see madiff/safeguard_options.py; runs of before have none.
    """

    env: Mapping[str, Any]
    agents: int | None = option("number of agents; null = as the scenario says", minimum=1)
    scenario: str | None = option("map or scenario; null = the environment's default for these agents")
    algo: Mapping[str, Any] = option("")
    data: Data = option("")
    train: Training = option("")
    evaluation: Evaluation = option("")
    seed: int = option("seed of the training", minimum=0)
    resume: Literal["no", "auto"] = option("auto continues the run directory where it stopped")
    run_dir: Path | None = option("null = runs/<env>-<scenario>-<algo>-<quality>-seed<seed>")
    hardware: Hardware = option("")
    tracking: Literal["none", "wandb-offline", "wandb"] = option("where metrics go besides metrics.jsonl")
    safe: Mapping[str, Any] = field(default_factory=lambda: {"name": "none", "constraints": None})


@dataclass(frozen=True)
class Collection:
    """What to record, or the foreign data to convert."""

    quality: str = option("expert, good, medium, poor, replay or random; mixtures as medium+poor")
    episodes: int | None = option("null = the environment's usual number, or all of data.path", minimum=1)
    seed: int = option("seed of the collection", minimum=0)
    path: Path | None = option("convert this file or folder instead; no environment is needed")
    format: str = option("format of data.path; auto looks at the file")


@dataclass(frozen=True)
class CollectConfig:
    """`python -m madiff.collect`."""

    env: Mapping[str, Any]
    agents: int | None = option("number of agents; null = as the scenario says", minimum=1)
    scenario: str | None = option("map or scenario; null = the environment's default for these agents")
    data: Collection = option("")
    out: Path = option("the HDF5 file to write, or the folder for Minari; must be given")
    overwrite: bool = option("true replaces what is there")
    format: Literal["native", "minari"] = option("format of out: one HDF5 file of ours, or a data set of Minari's")
    hardware: Machine = option("")


@dataclass(frozen=True)
class EvaluateConfig:
    """`python -m madiff.evaluate`; `algo` holds evaluation-time overrides of the trained method's options.

    `safe` holds the name of a safeguard and its options, see madiff/safeguard_options.py.
    """

    run: Path = option("run directory of a training; must be given")
    episodes: int = option("episodes of each policy", minimum=1)
    seed: int | None = option("seed of the episodes; null = that of the training's own comparison", minimum=0)
    out: Path | None = option("folder for the results; null = RUN/evaluations/<name>")
    film: bool = option("also write rollout.gif and, of plans with positions, denoising.gif and plans.png")
    algo: Mapping[str, Any] = option("")
    env: Mapping[str, Any] = option("")
    safe: Mapping[str, Any] = option("")
    cost_limit: float | None = option("the team's cost an episode may have; null = no budget", minimum=0)
    hardware: Hardware = option("")


@dataclass(frozen=True)
class BenchmarkConfig:
    """`python -m madiff.benchmark`; train, evaluation and data hold options of madiff.train for every cell."""

    suite: str = option("a suite of configs/suite, or the path of a YAML file")
    seeds: int | None = option("training seeds 0 to N-1 of every cell; null = as the suite says", minimum=1)
    methods: tuple[str, ...] | None = option("run only these methods, by label; null = all")
    tasks: tuple[str, ...] | None = option("run only these tasks; null = all")
    out: Path | None = option("folder of the benchmark; null = runs/benchmark-<suite>")
    workers: int | None = option("cells at a time, each of hardware.threads (null: 1); null = one a core", minimum=1)
    minutes: float | None = option("start nothing that would take longer; call again to go on; null = to the end", 0)
    launcher: Literal["local", "submitit"] = option("where cells run: processes here, or jobs of a cluster")
    cluster: Literal["slurm", "local"] | None = option("of launcher=submitit; null = Slurm where there is one")
    slurm: Mapping[str, Any] = option("options of the cluster's jobs, as slurm.partition=gpu")
    train: Mapping[str, Any] = option("options of madiff.train for every cell, as train.steps=10")
    evaluation: Mapping[str, Any] = option("the same, as evaluation.episodes=10")
    data: Mapping[str, Any] = option("the same, as data.cache=DIR")
    hardware: Hardware = option("")


@dataclass(frozen=True)
class ReportConfig:
    """`python -m madiff.report DIR...`, or `--compare A B`."""

    runs: tuple[Path, ...] = option("folders of benchmarks and runs, given without a key")
    compare: tuple[Path, ...] | None = option("say what changed between two, as --compare A B")
    out: Path | None = option("the HTML file to write; null = report.html, and with --compare none")


def structure(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The dataclass `cls` made of a mapping; unknown or missing keys, wrong types and ranges raise UserError.

    A number's range is its field's metadata `minimum` and `maximum`, both legal; whole numbers start from 1 otherwise.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    if unknown := sorted(set(values) - set(fields)):
        raise UserError(f"unknown option '{unknown[0]}'", where, sorted(fields))
    hints = _hints(cls)
    made = {}
    for name, f in fields.items():
        if name in values:
            ends = f.metadata.get("minimum"), f.metadata.get("maximum")
            made[name] = _convert(values[name], hints[name], _join(where, name), ends)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError("not given", _join(where, name), f.metadata.get("meaning"))
    return cls(**made)


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as the dicts, strings and lists that YAML and JSON can hold."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def meanings(cls: type, prefix: str = "") -> dict[str, str]:
    """Dotted key -> meaning and, where there is a fixed choice, the allowed values, for all nested options."""
    told: dict[str, str] = {}
    for f in dataclasses.fields(cls):
        hint = _hints(cls)[f.name]
        if dataclasses.is_dataclass(hint):
            told |= meanings(hint, f"{prefix}{f.name}.")
        elif meaning := f.metadata.get("meaning"):
            choice = f"{' | '.join(get_args(hint))}: " if get_origin(hint) is Literal else ""
            told[prefix + f.name] = choice + meaning
    return told


@cache
def _hints(cls: type) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(cls).items() if get_origin(hint) is not ClassVar}


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(value: Any, hint: Any, where: str, ends: Ends) -> Any:
    """`value` as the type `hint` says, or a UserError that names the key and what it takes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where, ends)
    if value is None:
        raise UserError("not given (null)", where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"unknown value '{value}'", where, arguments)
        return value
    if origin is tuple or origin is list:
        items = value if isinstance(value, list | tuple) else [value]
        return origin(_convert(item, arguments[0], where, ends) for item in items)
    if dataclasses.is_dataclass(hint):
        return structure(hint, _instance(value, Mapping, "a section", where), where)
    if hint is int:
        return _integer(value, where, ends)
    if hint is float:
        return _number(value, where, ends)
    if hint is str:
        return str(_instance(value, str | int, "a word", where))
    if hint is Path:
        return Path(os.path.expanduser(_instance(value, str | Path, "a path", where)))
    return _instance(value, origin or hint, "true or false" if hint is bool else "a section", where)


def _instance(value: Any, kind: Any, allowed: str, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or value == "":
        raise UserError(f"'{shown(value)}' is not {allowed}", where)
    return value


def shown(value: Any) -> str:
    """A value as the user writes it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _integer(value: Any, where: str, ends: Ends) -> int:
    minimum = 1 if ends[0] is None else ends[0]
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise UserError(f"'{shown(value)}' is not a whole number", where, _range("whole numbers", minimum, ends[1]))
    _check_range(value, where, "whole numbers", minimum, LARGEST if ends[1] is None else ends[1])
    return int(value)


def _number(value: Any, where: str, ends: Ends) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"'{shown(value)}' is not a finite number", where, _range("finite numbers", *ends))
    _check_range(value, where, "finite numbers", *ends)
    return float(value)


def _check_range(value: float, where: str, kind: str, minimum: float | None, maximum: float | None) -> None:
    if minimum is not None and value < minimum:
        raise UserError(f"{value:.6g} is too small", where, _range(kind, minimum, None))
    if maximum is not None and value > maximum:
        raise UserError(f"{value:.6g} is too large", where, _range(kind, minimum, maximum))


def _range(kind: str, minimum: float | None, maximum: float | None) -> str:
    return kind + ("" if minimum is None else f" from {minimum:g}") + ("" if maximum is None else f" to {maximum:g}")
