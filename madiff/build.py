"""The composition root: turns a configuration into environment, data, learner and trained policy; owns the registry."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import envs
from madiff import collection, guarding
from madiff.data.readers import FORMATS
from madiff.data.store import EpisodeStore
from madiff.experiment import checkpoint, run_directory, seeding
from madiff.interfaces import BatchedEnvironment, EnvironmentSpec, Hosting, Learner, Online, Policy, UserError
from madiff.schema import Data, TrainConfig, plain, structure

ROOMS = ("madiff.planners", "madiff.policies", "madiff.synthesizers", "baselines")


@dataclass(frozen=True)
class Method:
    """An algorithm: its name, the dataclass of its options, and the function that makes its learner."""

    name: str
    config: type
    make: Callable[[Any, EnvironmentSpec, torch.device, int], Learner]

    @property
    def defaults(self) -> dict[str, Any]:
        return plain(self.config())

    @property
    def acting(self) -> tuple[str, ...]:
        """Options that a trained policy may be given anew."""
        return getattr(self.config, "ACTING", ())


@cache
def registry() -> dict[str, Method]:
    """All methods by name: every module of the rooms, and of the user's own folders, with NAME, Config and make."""
    found: dict[str, Method] = {}
    for module in (*_rooms(), *_own()):
        if hasattr(module, "NAME"):
            if module.NAME in found:
                raise UserError(f"there is already a method called {module.NAME}", module.__file__)
            if not (hasattr(module, "Config") and hasattr(module, "make")):
                raise UserError("declares NAME without Config and make", module.__file__)
            found[module.NAME] = Method(module.NAME, module.Config, module.make)
    return dict(sorted(found.items()))


def _rooms() -> Iterator[ModuleType]:
    for room in filter(importlib.util.find_spec, ROOMS):
        for entry in pkgutil.iter_modules(importlib.import_module(room).__path__, f"{room}."):
            yield importlib.import_module(entry.name)


def _own() -> Iterator[ModuleType]:
    """The .py files of the folders that $MADIFF_METHODS lists. They are run: only the user's environment names them."""
    for folder in filter(None, os.environ.get("MADIFF_METHODS", "").split(os.pathsep)):
        for path in sorted(Path(folder).expanduser().glob("*.py")):
            name = f"madiff_methods.{path.stem}"
            spec = importlib.util.spec_from_file_location(name, path)
            # Where typing looks up the annotations of the file's dataclasses.
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                raise UserError(f"cannot be imported ({error!r})", str(path)) from error
            yield module


def defaults() -> dict[str, dict[str, Any]]:
    """The default options of every method."""
    return {name: found.defaults for name, found in registry().items()}


def method(name: str, where: str = "algo") -> Method:
    """The method of this name, or a UserError that lists those there are."""
    if name not in registry():
        raise UserError(f"unknown method '{name}'", where, list(registry()))
    return registry()[name]


@dataclass(frozen=True)
class Problem:
    """An environment of which any number of copies can be made, on one device.

    options: as the user gave them; spec.options has those that decide the dynamics.
    """

    spec: EnvironmentSpec
    options: Mapping[str, Any]
    device: torch.device

    @property
    def playable(self) -> bool:
        """Whether copies can be made; of episodes alone they cannot."""
        return True

    def make(self, copies: int) -> BatchedEnvironment:
        return envs.make_batched(self.spec.name, copies=copies, device=self.device, **self.options)

    def behaviour(self, env: BatchedEnvironment, quality: str) -> Policy:
        return envs.behaviour(env, quality)


def make_problem(env: Mapping[str, Any], agents: int | None, scenario: str | None, device: torch.device) -> Problem:
    """The environment named by `env["name"]`, with the section's other entries as its options."""
    # An environment of a fixed team is told no number; that it has the one asked for is looked at below.
    given = {"agents": agents if envs.accepts(env["name"], "agents") else None, "scenario": scenario}
    options = {key: value for key, value in {**env, **given}.items() if key != "name" and value is not None}
    spec = probed(env, options, device)
    if agents is not None and spec.agents != agents:
        raise UserError(f"{spec.name} {spec.scenario} has {spec.agents} agents", "agents", [spec.agents])
    return Problem(spec, options, device)


def probed(env: Mapping[str, Any], options: Mapping[str, Any], device: torch.device) -> EnvironmentSpec:
    """What an environment with these options is; one copy is made and closed. Errors name the section's keys."""
    try:
        with collection.opened(envs.make_batched(env["name"], copies=1, device=device, **options)) as probe:
            return probe.spec
    except UserError as error:
        if error.where in env and error.where != "name":
            raise UserError(error.what, f"env.{error.where}", error.allowed) from error
        raise


def make_learner(
    algo: Mapping[str, Any], spec: EnvironmentSpec, device: torch.device, seed: int, where: str = "algo"
) -> Learner:
    """The learner of `algo["name"]`, untrained; the section's other entries are the method's options.

    A learner that trains another one is handed it; where: the section's key, which errors name.
    """
    chosen, config = method_config(algo, where)
    try:
        learner = chosen.make(config, spec, device, seeding.derive(seed, "networks"))
        if isinstance(learner, Hosting):
            name, options = learner.guest
            section = {"name": name, **method(name, f"{where}.learner").defaults, **options}
            learner.host(make_learner(section, spec, device, seed, f"{where}.options"))
        learner.policy()  # so that options of acting are refused now, not after the training
        return learner
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(error), where) from error


def method_config(algo: Mapping[str, Any], where: str = "algo") -> tuple[Method, Any]:
    """The method a section names, and its options as the method's own dataclass."""
    chosen = method(algo["name"], where)
    options = {key: value for key, value in algo.items() if key != "name"}
    return chosen, structure(chosen.config, options, where)


def divisible(learner: Learner) -> bool:
    """Whether several processes can train it together: it has networks whose rows they divide, and acts nowhere."""
    return getattr(learner, "divisible", False) and not isinstance(learner, Online)


def check_divisible(name: str, learner: Learner, spec: EnvironmentSpec, device: torch.device, count: int) -> None:
    """Refuse a learner that `count` processes would each train as a whole; the error names the methods they divide."""
    if count == 1 or divisible(learner):
        return
    others = []
    for other, found in registry().items():
        with suppress(UserError):  # what does not fit this environment
            if divisible(make_learner({"name": other, **found.defaults}, spec, device, 0)):
                others.append(other)
    why = "acts while it learns" if isinstance(learner, Online) else "has no network whose rows can be divided"
    raise UserError(f"{name} {why}, so {count} processes cannot train it", "torchrun", others)


def make_store(data: Data, problem: Problem) -> Callable[[], EpisodeStore]:
    """Check what `data` asks for, at once; the function returned then gives the episodes (collecting takes time)."""
    if data.format not in ("auto", *FORMATS):
        raise UserError(f"unknown format '{data.format}'", "data.format", ["auto", *FORMATS])
    if data.path is not None:
        store = with_unused_actions(EpisodeStore.open(data.path, data.format), problem.spec)
        check_store(store, problem.spec)
        wanted = min(data.episodes or store.episodes, store.episodes)
        return lambda: part(store if wanted == store.episodes else store.subset(range(wanted)), data)
    check_quality(data.quality, problem)
    return lambda: part(_collected(data, problem), data)


def part(store: EpisodeStore, data: Data) -> EpisodeStore:
    """The share of the episodes that `data` asks for, at least one; a smaller share lies within every larger one."""
    if data.share is None:
        return store
    order = torch.randperm(store.episodes, generator=seeding.generator(data.seed, "share"))
    return store.subset(order[: max(1, round(data.share * store.episodes))].sort().values)


def _collected(data: Data, problem: Problem) -> EpisodeStore:
    spec = problem.spec
    episodes = data.episodes or envs.default_episodes(spec.name)
    shown = collection.console.is_terminal
    return collection.cached(
        spec.name, spec.options, data.quality, episodes, data.seed, data.cache, problem.device, shown, problem.make
    )[0]


def qualities(quality: str) -> list[str]:
    """The parts of a mixture such as medium+poor."""
    return [part.strip() for part in quality.split("+")]


def check_quality(quality: str, problem: Problem) -> None:
    """Refuse a quality, or a part of a mixture, for which the environment has no behaviour policy."""
    with collection.opened(problem.make(1)) as env:
        for part in qualities(quality):
            problem.behaviour(env, part)


def with_unused_actions(store: EpisodeStore, spec: EnvironmentSpec) -> EpisodeStore:
    """The store with the environment's number of actions, where without masks only those played could be counted."""
    counted = store.discrete and spec.discrete and store.available_actions is None
    if counted and store.action_size < spec.action_size:
        return dataclasses.replace(store, action_size=spec.action_size)
    return store


def check_store(store: EpisodeStore, spec: EnvironmentSpec) -> None:
    """Refuse data whose sizes are not the environment's."""
    for key in ("agents", "observation_size", "action_size", "discrete"):
        found, needed = getattr(store, key), getattr(spec, key)
        if found != needed:
            raise UserError(
                f"the data's {key} is {found}", "data.path", f"{needed}, as {spec.name} {spec.scenario} has"
            )
    # What was padded, where the reader knows: a column that one agent's file lacks would pass for one of zeros.
    for key, whole in (("observation_sizes", spec.observation_size), ("action_sizes", spec.action_size)):
        found, needed = store.provenance.get(key), list(getattr(spec, key)) or [whole] * spec.agents
        if found and found != needed:
            raise UserError(
                f"the data's {key} are {found}", "data.path", f"{needed}, as {spec.name} {spec.scenario} has"
            )


@dataclass(frozen=True)
class TrainedRun:
    """A run directory read back: what it was told, where it got to, its learner, and whether its data has costs."""

    path: Path
    config: TrainConfig
    spec: EnvironmentSpec
    step: int
    policy: Policy
    costs: bool
    learner: Learner


def load_run(
    path: str | os.PathLike[str], device: str | torch.device, acting: Mapping[str, Any] | None = None
) -> TrainedRun:
    """The policy of a run's newest intact checkpoint, with the layer it was trained through.

    acting: new values for options that the method lets a trained policy change. Raises UserError for any other
    option, and where there is no run or no checkpoint.
    """
    path = Path(os.path.expanduser(path))
    config = structure(TrainConfig, run_directory.read(path)[0])
    saved = checkpoint.latest(path / "checkpoints")
    if saved is None:
        raise UserError(f"{path} has no checkpoint yet", "run", "a run that has trained")
    allowed = method(config.algo["name"]).acting
    for key in acting or {}:
        if key not in allowed:
            options = [f"algo.{name}" for name in allowed]
            raise UserError(f"algo.{key} cannot change after training", config.algo["name"], options)
    safe = guarding.kept(config.safe, path)
    config = dataclasses.replace(config, algo={**config.algo, **(acting or {})}, safe=safe)
    try:
        spec = EnvironmentSpec(**saved.meta["spec"])
        learner = make_learner(config.algo, spec, torch.device(device), config.seed)
        learner.load_weights(saved.weights())
        guarding.put(learner, config.safe, spec)
        return TrainedRun(path, config, spec, saved.step, learner.policy(), saved.meta["costs"], learner)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{saved.path} does not fit {path / 'config.yaml'} ({error})", "run") from error
