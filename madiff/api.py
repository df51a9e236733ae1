"""The suite from Python: `from madiff import load_data, fit, plan, constrain, assess`.

A thin layer over the commands. Keywords are their options, as `seed=1`; a mapping is a section, and its `name` what the
command is told as `algo=`, `env=` or `safe=`: `algo={"name": "bc", "width": 16}, train={"steps": 100}` is
`algo=bc algo.width=16 train.steps=100`. Defaults, run directories, checkpoints and errors are the commands' own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from pettingzoo import ParallelEnv

from madiff import (
    assessment,
    build,
    collection,
    configuration,
    evaluate,
    guarding,
    hardware,
    own_problem,
    safeguards,
    tracing,
    train,
)
from madiff.build import Problem, TrainedRun
from madiff.data.store import EpisodeStore
from madiff.experiment import durable
from madiff.experiment.run_directory import RunDirectory
from madiff.interfaces import UserError
from madiff.planners.planner import Planned, observation_names
from madiff.schema import EvaluateConfig, TrainConfig, plain, structure

Data = EpisodeStore | str | PathLike[str] | Sequence[Mapping[str, Any]]
Run = TrainedRun | str | PathLike[str]
Make = Callable[[], ParallelEnv]
Environment = str | Mapping[str, Any] | Make | None
WHERE = "options"
ACTING = ("seed", "algo", "safe", "cost_limit", "hardware")  # what a trained policy may be told


def load_data(source: Data, format: str = "auto") -> EpisodeStore:
    """Episodes from a file or folder in any known format, or from a mapping of arrays each; see `EpisodeStore`."""
    if isinstance(source, EpisodeStore):
        return source
    if isinstance(source, str | PathLike):
        return EpisodeStore.open(source, format)
    return EpisodeStore.from_arrays(source)


def fit(
    data: Data, /, algo: str | Mapping[str, Any] = "madiff-d", env: Environment = None, **options: Any
) -> TrainedRun:
    """Train a method on data as `python -m madiff.train` does, without its baselines and its final comparison.

    env: a name as `env=`, or a mapping with it and its options; a function or class that makes a PettingZoo
    `ParallelEnv`; None for episodes alone, then there is no learning curve. The run directory can be continued
    (`resume="auto"`) and evaluated. Data given as arrays is kept as a file in the cache.
    """
    given = sections(algo=algo, **options)
    store = None if isinstance(data, str | PathLike) else load_data(data)
    path = data if store is None else filed(store, given.get("data.cache"))
    own = env is None or callable(env)
    given |= {"data.path": str(path), **sections(env=own_problem.NAME if own else env)}
    config = structure(TrainConfig, configuration.compose_given("train", build.defaults(), given, WHERE))
    device = hardware.setup(config.hardware, None).device
    return build.load_run(trained(config, training_problem(config, env, store, device), device), device)


def trained(config: TrainConfig, problem: Problem, device: torch.device) -> Path:
    """The run directory of a training without anything beside it; what is wrong is found before it is made."""
    job = train.Job(config, problem, device)
    learner = job.learner(job.algo)
    guarding.check(learner, config.safe, problem.spec)
    read, path = build.make_store(config.data, problem), config.run_dir or job.default_path
    with RunDirectory.open(path, plain(config), job.identity(job.algo), config.resume) as run:
        guarding.keep(config.safe, run.path)
        job.fit(job.algo, learner, read(), run)
    return path


class Plan(NamedTuple):
    """points (plans, T, agent, F) from the present on, in the environment's units, and the names of the F features.

    One plan for the team, or one for every agent where they plan apart (`madiff-d`), in their order. actions: what
    the agents do now, (agent,) or (agent, A); dt: environment steps between two points.
    """

    points: np.ndarray
    names: tuple[str, ...]
    actions: np.ndarray
    dt: float


def plan(run: Run, observation: Any, available: Any = None, **options: Any) -> Plan:
    """What a trained planner plans from one joint observation (agent, O), at the beginning of an episode.

    available (agent, actions) bool: the legal actions, where they are discrete. Options: those of
    `python -m madiff.evaluate`, as `seed`, `algo={"target_return": 0.5}`, `safe`, `cost_limit`.
    """
    config = configured(run, options, ACTING)
    found, guarded = reopened(run, config)
    planner = safeguards.planner_of(found)
    if planner is None:
        raise UserError(f"{found.config.algo['name']} makes no plans", "plan", "a run of a planner, as diffuser")
    seen = checked(observation, found)
    masks = None if available is None else torch.as_tensor(np.asarray(available), dtype=torch.bool)[None]
    made: list[Planned] = []
    tracing.innermost(guarded.timed).watch = made.append
    guarded.timed.reset(seed_of(config, found), 1)
    actions = guarded.timed.act(seen, None if masks is None else masks.to(seen.device))[0]
    if not made:
        raise UserError("nobody has a choice, so there is no plan", "available", "more than one action of somebody")
    layout = planner.layout()
    plans = torch.cat([layout.denormalize(planned.plans)[:, layout.history :] for planned in made])
    return Plan(plans.cpu().numpy(), tuple(layout.names), actions.cpu().numpy(), layout.dt)


def constrain(run: Run, sets: Mapping[str, Any] | str | PathLike[str] | None, how: str, **options: Any) -> TrainedRun:
    """The trained run with its plans, or its actions, kept in these sets from now on; it is not trained again.

    sets: a constraint file, what one holds, or None for the environment's own. how, options: a safeguard as `safe=`,
    and its options, as `margin=0.1`. Sets given as a mapping are kept as a file in the run directory.
    """
    found = opened(run)
    if isinstance(sets, Mapping):
        sets = kept_sets(found, sets)
    section = {"name": how, **options, "constraints": None if sets is None else str(sets)}
    kept = dataclasses.replace(found, config=dataclasses.replace(found.config, safe=section))
    return dataclasses.replace(kept, policy=safeguards.safeguard(kept, train.AS_TRAINED).policy)


def assess(
    run: Run, /, env: Environment = None, scenario: str | None = None, agents: int | None = None, **options: Any
) -> dict[str, Any]:
    """What `python -m madiff.evaluate` would write to evaluation.json, less the behaviour's row.

    env: None for the training's environment; a mapping without a name for it with other options, as {"speed": 0.7};
    a name, or a mapping with one, and scenario and agents, for another one of the same sizes; a function or class that
    makes your PettingZoo `ParallelEnv`. Options: `episodes`, `seed`, `algo`, `safe`, `cost_limit`, `hardware`.
    """
    config = configured(run, options, (*ACTING, "episodes"))
    found, guarded = reopened(run, config)
    problem = problem_of(found, env, scenario, agents)
    name, seed = found.config.algo["name"], seed_of(config, found)
    result = assessment.assess(
        name, problem, guarded.policy, config.episodes, seed, found.costs, record=bool(guarded.sets),
        timed=guarded.timed,
    )  # fmt: skip
    report = evaluate.summarise(config, found, seed, [result]) | guarded.report(result.store, result.records)
    return report | {"env": problem.spec.name, "scenario": problem.spec.scenario}


def sections(**options: Any) -> dict[str, Any]:
    """Keywords as the dotted keys of the command line."""
    given: dict[str, Any] = {}
    for key, value in options.items():
        if not isinstance(value, Mapping):
            given[key] = value
            continue
        for inner, told in configuration.flatten(value).items():
            given[key if inner == "name" else f"{key}.{inner}"] = told
    return given


def filed(store: EpisodeStore, cache: str | PathLike[str] | None) -> Path:
    """Where the cache keeps these episodes, by their digest: the same ones always in the same file."""
    path = collection.cache_folder(cache) / f"episodes-{store.sha256[:20]}.h5"
    with collection.locked(path):
        if not path.exists():
            store.save(path)
    return path


def training_problem(
    config: TrainConfig, env: Environment, store: EpisodeStore | None, device: torch.device
) -> Problem:
    """The environment that is named, the user's own, or none but the episodes."""
    if callable(env):
        return own_problem.of_environment(env, config.env, device)
    if env is not None:
        return build.make_problem(config.env, config.agents, config.scenario, device)
    data = config.data
    assert data.path is not None  # `fit` says it
    return own_problem.of_episodes(EpisodeStore.open(data.path, data.format) if store is None else store, device)


def opened(run: Run, device: str = "cpu") -> TrainedRun:
    return run if isinstance(run, TrainedRun) else build.load_run(run, device)


def configured(run: Run, options: Mapping[str, Any], allowed: Sequence[str]) -> EvaluateConfig:
    """The options of an evaluation, of which these are allowed here; its run is a directory."""
    for key in options:
        if key.partition(".")[0] not in allowed:
            raise UserError(f"unknown option '{key}'", WHERE, list(allowed))
    given = {"run": str(run.path if isinstance(run, TrainedRun) else run), **sections(**options)}
    return structure(EvaluateConfig, configuration.compose_given("evaluate", build.defaults(), given, WHERE))


def reopened(run: Run, config: EvaluateConfig) -> tuple[TrainedRun, safeguards.Safeguarded]:
    """The run with the options of acting, as it was constrained, and its policy under its safeguard."""
    machine = hardware.setup(config.hardware, None)
    found = safeguards.load(config.run, machine.device, config.algo, config.cost_limit)
    if isinstance(run, TrainedRun):
        found = dataclasses.replace(found, config=dataclasses.replace(found.config, safe=run.config.safe))
    return found, safeguards.safeguard(found, config.safe, config.cost_limit)


def seed_of(config: EvaluateConfig, run: TrainedRun) -> int:
    return run.config.evaluation.seed if config.seed is None else config.seed


def problem_of(run: TrainedRun, env: Environment, scenario: str | None, agents: int | None) -> Problem:
    """Where a run is tried; UserError where it has other sizes than the training's."""
    device = torch.device(run.learner.device)
    told = {} if env is None else env if isinstance(env, Mapping) else {"name": env}
    if callable(env):
        problem = own_problem.of_environment(env, run.config.env, device)
    elif "name" in told:
        given = sections(env=told, scenario=scenario, agents=agents)
        config = structure(TrainConfig, configuration.compose_given("train", build.defaults(), given, WHERE))
        problem = build.make_problem(config.env, config.agents, config.scenario, device)
    elif run.config.env["name"] == own_problem.NAME and run.config.env["id"] is None:
        raise UserError("the run's own is known to Python alone", "env", "what makes your PettingZoo ParallelEnv")
    else:
        return assessment.changed_problem(run.config, run.spec, told, device)
    own_problem.check_fit(problem.spec, run.spec)
    return problem


def checked(observation: Any, run: TrainedRun) -> torch.Tensor:
    """A joint observation as the batch (1, agent, O) that a policy takes."""
    seen, wanted = np.asarray(observation, np.float32), (run.spec.agents, run.spec.observation_size)
    if seen.shape != wanted or not np.isfinite(seen).all():
        raise UserError(f"shape {seen.shape}", "observation", f"finite numbers of shape {wanted}: agent, value")
    return torch.from_numpy(seen)[None].to(run.learner.device)


def kept_sets(run: TrainedRun, sets: Mapping[str, Any]) -> Path:
    """The file in the run directory that holds these sets, once they are found to be right."""
    from safe import constraints

    planner = safeguards.planner_of(run)
    constraints.load(sets, observation_names(run.spec) if planner is None else planner.layout().names)
    text = yaml.safe_dump(json.loads(json.dumps(plain(sets))), sort_keys=False).encode()
    path = run.path / f"constraints-{hashlib.sha256(text).hexdigest()[:12]}.yaml"
    with durable.disk_errors("write", path):
        durable.replace(path, text)
    return path
