"""Data sets from the shipped behaviour policies, made in the batched simulator and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import envs
from madiff.data.store import EpisodeStore
from madiff.experiment import seeding
from madiff.experiment.rollout import rollout, wave_sizes
from madiff.interfaces import BatchedEnvironment, EnvironmentSpec, UserError

VERSION = 1  # of the way data is collected; a new number makes every cached set again
WAVE = 1024  # copies simulated together, fewer where the recording would take more than
WAVE_BYTES = 512 * 2**20
console = Console(stderr=True)


def collect(
    env_name: str,
    env_options: Mapping[str, Any],
    quality: str,
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> EpisodeStore:
    """Record `episodes` episodes of the behaviour policy of this quality.

    quality: a name, or a mixture such as medium+poor, of which every part gives an equal share; the parts alternate,
    so that any leading piece of the set is mixed alike. Raises UserError for an unknown environment or quality.
    """
    parts = [part.strip() for part in quality.split("+")]
    if episodes < len(parts):
        raise UserError(f"is {episodes}", "data.episodes", f"at least {len(parts)} for quality {quality}")
    shares = [episodes // len(parts) + (part < episodes % len(parts)) for part in range(len(parts))]
    make = partial(envs.make_batched, env_name, device=device, **env_options)
    probe = make(copies=1)
    for part in parts:
        envs.behaviour(probe, part)  # refuses an unknown quality before any work
    with progress_bar(f"collecting {env_name} {quality}", episodes, progress) as advance:
        stores = [
            record(make, wave_sizes(share, wave_size(probe.spec)), part, seeding.derive(seed, part, number), advance)
            for number, (part, share) in enumerate(zip(parts, shares, strict=True))
        ]
    provenance = dict(stores[0].provenance) | {
        "options": dict(env_options),
        "quality": quality,
        "env_version": env_version(),
        "seed": seed,
    }
    joined = EpisodeStore.concatenate(stores, provenance)
    return joined if len(parts) == 1 else joined.subset(alternating(shares))


def record(
    make: Callable[..., BatchedEnvironment],
    waves: list[int],
    quality: str,
    seed: int,
    advance: Callable[[int], object],
) -> EpisodeStore:
    """Episodes of one behaviour policy, as many at a time as `waves` says."""
    stores = []
    for wave, copies in enumerate(waves):
        env = make(copies=copies)
        wave_seed = seeding.derive(seed, "wave", wave)
        run = rollout(env, envs.behaviour(env, quality), seed=wave_seed, record=True, progress=advance)
        stores.append(run.store)
    return EpisodeStore.concatenate(stores)


def wave_size(spec: EnvironmentSpec) -> int:
    """How many copies can be recorded at once."""
    numbers = spec.agents * (spec.observation_size + spec.action_size) + spec.state_size
    return max(1, min(WAVE, WAVE_BYTES // (4 * numbers * spec.episode_limit)))


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
) -> tuple[EpisodeStore, Path]:
    """`collect`, or the same set from the cache; the file is named by a hash of all that decides its content.

    cache_dir: default $MADIFF_CACHE, else ~/.cache/madiff. Two processes that want the same set make it once; a
    damaged file is made again.
    """
    path = cache_path(env_name, env_options, quality, episodes, seed, cache_dir, device)
    with locked(path):
        if path.exists():
            try:
                return EpisodeStore.open(path, "native"), path
            except UserError as error:
                console.print(f"making this data set again: {error}", markup=False, soft_wrap=True)
        store = collect(env_name, env_options, quality, episodes, seed, device, progress)
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
        "versions": [VERSION, env_version()],
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
    folder = cache_dir or os.environ.get("MADIFF_CACHE") or Path.home() / ".cache" / "madiff"
    return Path(os.path.expanduser(folder)) / f"{env_name}-{key[:20]}.h5"


def env_version() -> Any:
    return getattr(envs, "VERSION", 1)


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
def progress_bar(label: str, total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """A bar over `total` episodes, on terminals only; yields the function that advances it."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    hidden = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
