"""Any installed PettingZoo environment by its import path, e.g. `env=pettingzoo env.id=mpe2.simple_reference_v3`.

A run directory names the environment it was trained in, and whoever opens it imports that module. So only modules of
PettingZoo and of installed packages that declare they need it are imported; others are refused without being looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from importlib import import_module
from importlib.metadata import packages_distributions, requires
from typing import Any

import torch
from pettingzoo import ParallelEnv

from madiff.interfaces import UserError

from .parallel_view import ParallelView
from .workers import RandomPolicy, WorkerEnvironment

NAME = "pettingzoo"
EPISODES = 2000
IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")
EXAMPLE = "the import path of a module with parallel_env, as mpe2.simple_reference_v3"


def parallel(
    id: str | None = None,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
) -> ParallelView:
    """One copy as a `ParallelEnv` with action masks, costs and a limit in the way of this suite."""
    env = batched(1, id=id, limit=limit, options=options)
    return ParallelView(env, env.layout.agents, render_mode)


def batched(
    copies: int = 1,
    device: str | torch.device = "cpu",
    id: str | None = None,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
) -> WorkerEnvironment:
    """Many copies; options: keyword arguments of the module's `parallel_env`, numbers, words or true and false."""
    if id is None:
        raise UserError("not given", "env.id", EXAMPLE)
    check_id(id)
    options = dict(options or {})
    for key, value in options.items():
        if not isinstance(value, bool | int | float | str | None):
            raise UserError(f"{value!r} is not a plain value", f"env.options.{key}", "a number, a word, true or false")
    given = {"id": id, "limit": limit, "options": options}
    return WorkerEnvironment(
        NAME, id.rpartition(".")[2], partial(make, id, options), copies, device, workers=workers, limit=limit,
        options={key: value for key, value in given.items() if value}, preload=[id],
    )  # fmt: skip


def behaviour(env: WorkerEnvironment, quality: str) -> RandomPolicy:
    """Uniformly random legal actions; nobody knows better in an environment that could be any."""
    if quality != "random":
        raise UserError(f"no quality is called {quality!r}", "data.quality", ["random"])
    return RandomPolicy(env.spec, env.device)


def make(id: str, options: Mapping[str, Any]) -> ParallelEnv:
    """One copy of an environment whose id is checked, able to draw pictures where its module lets it."""
    try:
        module = import_module(id)
    except ImportError as error:
        raise UserError(f"{id} cannot be imported ({error})", "env.id", EXAMPLE) from error
    if not callable(getattr(module, "parallel_env", None)):
        raise UserError(f"{id} has no parallel_env", "env.id", EXAMPLE)
    try:
        return module.parallel_env(**{"render_mode": "rgb_array", **options})
    except (TypeError, ValueError, AssertionError):  # perhaps it draws nothing; if not that, it says so again
        return module.parallel_env(**options)


def check_id(id: str) -> None:
    """Refuse whatever is not a module of PettingZoo or of an installed package that requires it."""
    if not isinstance(id, str) or not IMPORT_PATH.fullmatch(id):
        raise UserError(f"{id!r} is not an import path", "env.id", EXAMPLE)
    package = id.partition(".")[0]
    if not needs_pettingzoo(package):
        what = f"{package} is not an installed package that requires pettingzoo"
        allowed = "a package of your own after pip install, with pettingzoo among the dependencies it declares"
        raise UserError(what, "env.id", allowed)


@cache
def needs_pettingzoo(package: str) -> bool:
    """Whether an installed distribution brings this top-level package and is, or declares to require, pettingzoo."""
    for distribution in packages_distributions().get(package, []):
        declared = [match.group().lower() for match in map(REQUIREMENT.match, requires(distribution) or []) if match]
        if "pettingzoo" in (distribution.lower(), *declared):
            return True
    return False
