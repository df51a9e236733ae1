"""Data sets from the shipped behaviour policies, made in the batched simulator and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import envs
import madiff
from madiff.data.store import EpisodeStore
from madiff.experiment import seeding
from madiff.experiment.rollout import rollout, wave_sizes
from madiff.interfaces import BatchedEnvironment, EnvironmentSpec, TimeStep, UserError

VERSION = 1  # of the way data is collected; a new number makes every cached set again
SIMULATORS = ("pettingzoo", "mpe2", "mujoco", "gymnasium-robotics")
WAVE = 1024  # copies simulated together, fewer where the recording would take more than
WAVE_BYTES = 512 * 2**20
PROCESS_WAVE = 128  # copies of an environment that makes them one by one and steps them in processes
console = Console(stderr=True)


def collect(
    env_name: str,
    env_options: Mapping[str, Any],
    quality: str,
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
    make: Callable[[int], BatchedEnvironment] | None = None,
) -> EpisodeStore:
    """Record `episodes` episodes of the behaviour policy of this quality.

    make: gives an environment of so many copies, for options that do not decide the dynamics, such as the number of
    worker processes; by default `env_options` make it.
    quality: a name, or a mixture such as medium+poor, of which every part gives an equal share; the parts alternate,
    so that any leading piece of the set is mixed alike. Raises UserError for an unknown environment or quality.
    """
    parts = [part.strip() for part in quality.split("+")]
    if episodes < len(parts):
        raise UserError(f"is {episodes}", "data.episodes", f"at least {len(parts)} for quality {quality}")
    shares = [episodes // len(parts) + (part < episodes % len(parts)) for part in range(len(parts))]
    make = make or (lambda copies: envs.make_batched(env_name, copies, device, **env_options))
    with opened(make(1)) as probe:
        spec, largest = probe.spec, PROCESS_WAVE if hasattr(probe, "close") else WAVE
        for part in parts:
            envs.behaviour(probe, part)  # refuses an unknown quality before any work
    with progress_bar(f"collecting {env_name} {quality}", episodes, progress) as advance:
        stores = [
            record(make, wave_sizes(share, wave_size(spec, largest)), part, seeding.derive(seed, part, number), advance)
            for number, (part, share) in enumerate(zip(parts, shares, strict=True))
        ]
    joined = EpisodeStore.concatenate(stores, provenance(spec, env_options, quality, seed))
    return joined if len(parts) == 1 else joined.subset(alternating(shares))


def provenance(spec: EnvironmentSpec, env_options: Mapping[str, Any], quality: str, seed: int) -> dict[str, Any]:
    """What the card says beside the data's own measures."""
    sizes = {"observation_sizes": list(spec.observation_sizes), "action_sizes": list(spec.action_sizes)}
    return {
        "env": spec.name,
        "scenario": spec.scenario,
        "options": dict(env_options),
        "quality": quality,
        "env_version": env_version(),
        "versions": {"madiff": madiff.__version__, **simulators()},
        "seed": seed,
    } | {name: values for name, values in sizes.items() if values}


def record(
    make: Callable[[int], BatchedEnvironment],
    waves: list[int],
    quality: str,
    seed: int,
    advance: Callable[[float], object],
) -> EpisodeStore:
    """Episodes of one behaviour policy, as many at a time as `waves` says."""
    stores = []
    for copies in dict.fromkeys(waves):  # two sizes at most: full waves, then the rest
        with opened(make(copies)) as env:
            for _ in range(waves.count(copies)):
                ticking, wave_seed = Ticking(env, advance), seeding.derive(seed, "wave", len(stores))
                stores.append(rollout(ticking, envs.behaviour(env, quality), seed=wave_seed, record=True).store)
                ticking.finish()
                check_memory(stores[0], sum(waves))
    return EpisodeStore.concatenate(stores)


def check_memory(wave: EpisodeStore, episodes: int) -> None:
    """Refuse so many episodes like these as this machine cannot hold, joining them included."""
    size = 2 * sum(values.nbytes for values in wave.tensors.values()) / wave.episodes
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if episodes * size > memory:
        what = f"{episodes} episodes would take {episodes * size / 2**30:.3g} GiB of memory"
        raise UserError(what, "data.episodes", f"at most {int(memory / size)} on this machine")


@contextmanager
def opened(env: BatchedEnvironment) -> Iterator[BatchedEnvironment]:
    """The environment, closed afterwards where it holds processes that have to be."""
    try:
        yield env
    finally:
        close = getattr(env, "close", None)
        if close is not None:
            close()


class Ticking:
    """An environment that reports each step as its share of all copies' longest episodes.

    Counting ended episodes would leave a progress bar at zero until all copies of long episodes end together.
    """

    def __init__(self, env: BatchedEnvironment, advance: Callable[[float], object]) -> None:
        self.env, self.advance, self.left = env, advance, float(env.copies)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, actions: torch.Tensor) -> TimeStep:
        share = self.env.copies / self.env.spec.episode_limit
        self.left -= share
        self.advance(share)
        return self.env.step(actions)

    def finish(self) -> None:
        self.advance(max(0.0, self.left))


def wave_size(spec: EnvironmentSpec, largest: int) -> int:
    """How many copies can be recorded at once, `largest` at most."""
    numbers = spec.agents * (spec.observation_size + spec.action_size) + spec.state_size
    return max(1, min(largest, WAVE_BYTES // (4 * numbers * spec.episode_limit)))


def alternating(shares: list[int]) -> torch.Tensor:
    """Order that takes one episode of each part in turn."""
    return torch.cat([torch.arange(share) for share in shares]).argsort(stable=True)


def cached(
    env_name: str,
    env_options: Mapping[str, Any],
    quality: str,
    episodes: int,
    seed: int,
    cache_dir: Path | str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    make: Callable[[int], BatchedEnvironment] | None = None,
) -> tuple[EpisodeStore, Path]:
    """`collect`, or the same set from the cache; the file is named by a hash of all that decides its content.

    cache_dir: default $MADIFF_CACHE, else ~/.cache/madiff. Two processes that want the same set make it once; a
    damaged file is made again.
    """
    path = cache_path(env_name, env_options, quality, episodes, seed, cache_dir, device)
    with locked(path):
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        if path.exists():
            try:
                return EpisodeStore.open(path, "native"), path
            except UserError as error:
                console.print(f"making this data set again: {error}", markup=False, soft_wrap=True)
        store = collect(env_name, env_options, quality, episodes, seed, device, progress, make)
        store.save(path)
    return store, path


def cache_path(
    env_name: str,
    env_options: Mapping[str, Any],
    quality: str,
    episodes: int,
    seed: int,
    cache_dir: Path | str | None,
    device: torch.device | str,
) -> Path:
    if env_name not in envs.names():
        raise UserError(f"unknown environment {env_name!r}", "env", envs.names())
    inputs = {
        "env": env_name,
        "options": dict(env_options),
        "quality": quality,
        "episodes": episodes,
        "seed": seed,
        "device": torch.device(device).type,
        "versions": [VERSION, env_version(), simulators()],
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder(cache_dir) / f"{env_name}-{key[:20]}.h5"


def cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The folder given, else $MADIFF_CACHE, else ~/.cache/madiff."""
    folder = cache_dir or os.environ.get("MADIFF_CACHE") or Path.home() / ".cache" / "madiff"
    return Path(os.path.expanduser(folder))


def env_version() -> Any:
    return getattr(envs, "VERSION", 1)


@cache
def simulators() -> dict[str, str]:
    """The installed packages that decide how some environments behave, with their versions."""
    installed = {}
    for package in SIMULATORS:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold this file against other processes; says so when it has to wait."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.print("waiting for another process that is making the same data set", markup=False)
            lock.acquire()
    except OSError as error:
        raise UserError(f"the cache cannot be written ({error.strerror})", str(path.parent)) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def progress_bar(label: str, total: int, shown: bool) -> Iterator[Callable[[float], object]]:
    """A bar over `total` episodes, on terminals only; yields the function that advances it, by parts of them too."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    hidden = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
