"""Safety-Gymnasium 1.0.0 (arXiv 2310.12567) as it is, on packages four years younger than those it was written for.

Four faults stand between them, each bridged below and nowhere else:
1. since Python 3.11 dataclasses refuse NumPy arrays as defaults, which its objects have;
2. Gymnasium 1.0 removed five modules of wrappers that it imports, and derives from classes in;
3. its `make` reads fields that Gymnasium's `EnvSpec` lost;
4. mujoco returns arrays of length 1 where it needs a number, and NumPy 2.4 no longer takes one for a number.
The first two are needed while it is imported and undone afterwards; the last changes the package's own classes only.
So does what keeps its worlds small: each carries a starry sky of 182 MB, read anew at every reset, and numbers by
which today's MuJoCo sets half a gigabyte aside for contacts.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from functools import cache, partial
from importlib import import_module
from io import StringIO
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from madiff.interfaces import UserError

PACKAGE = "safety_gymnasium"
INSTALL = "pip install --no-deps safety-gymnasium==1.0.0"
REMOVED = {
    "compatibility": ("EnvCompatibility",),
    "autoreset": ("AutoResetWrapper",),
    "normalize": ("NormalizeObservation", "NormalizeReward", "RunningMeanStd"),
    "time_limit": ("TimeLimit",),
    "env_checker": ("PassiveEnvChecker",),
}
"""Fault 2: the modules that `gymnasium.wrappers` no longer has, and the classes the package takes from each."""
MEMORY = "16M"
BEFORE = (
    "glfw", "gymnasium.envs.mujoco.mujoco_rendering", "gymnasium.vector", "gymnasium_robotics", "imageio",
    "mujoco", "xmltodict", "yaml",
)  # fmt: skip
"""What the package imports of others: imported before anything is changed, so that none of them sees the change."""


@cache
def load() -> ModuleType:
    """The package, imported once a process; raises UserError in one line where it, or what it needs, is missing."""
    try:
        with redirect_stderr(StringIO()):  # notices about environments that are not used here
            for name in BEFORE:
                import_module(name)
            with array_defaults(), stand_ins():
                package = import_module(PACKAGE)
    except ImportError as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        raise UserError(f"Safety-Gymnasium cannot be imported ({error})", PACKAGE, INSTALL) from error
    number_from_arrays()
    small_worlds()
    return package


def make(id: str, **options: Any) -> Any:
    """Fault 3: the environment registered under this id, without any wrapper; its `step` returns a cost as well."""
    load()
    spec = gymnasium.spec(id)
    return load_env_creator(spec.entry_point)(**deepcopy(spec.kwargs), **options)


@contextmanager
def array_defaults() -> Iterator[None]:
    """Fault 1: while the context lasts, dataclasses of the package may have arrays as defaults; each gets a copy."""
    original = dataclasses.dataclass
    dataclasses.dataclass = partial(copying_dataclass, original)
    try:
        yield
    finally:
        dataclasses.dataclass = original


def copying_dataclass(original: Callable[..., Any], cls: type | None = None, /, **options: Any) -> Any:
    """`dataclasses.dataclass`, which for classes of the package replaces default arrays by factories of copies."""
    if cls is None:
        return partial(copying_dataclass, original, **options)
    if cls.__module__.partition(".")[0] == PACKAGE:
        for name in cls.__dict__.get("__annotations__", {}):
            default = cls.__dict__.get(name)
            if isinstance(default, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=default.copy))
    return original(cls, **options)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Fault 2: while the context lasts, the modules removed from Gymnasium can be imported, with empty wrappers."""
    modules = {f"gymnasium.wrappers.{name}": ModuleType(name) for name in REMOVED}
    for module, classes in zip(modules.values(), REMOVED.values(), strict=True):
        for name in classes:
            setattr(module, name, type(name, (gymnasium.Wrapper,), {}))
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


def number_from_arrays() -> None:
    """Fault 4: let the package's robots find the joints of their sensors, and read the angles of these joints."""
    module = import_module(f"{PACKAGE}.bases.base_agent")
    original = module.BaseAgent._init_jnt_sensors

    def find_joint_sensors(agent: Any) -> None:
        engine = agent.engine
        agent.engine = SimpleNamespace(model=ScalarIds(engine.model), data=engine.data)
        try:
            original(agent)
        finally:
            agent.engine = engine

    module.BaseAgent._init_jnt_sensors = find_joint_sensors
    # The module's only use of this name is on a hinge's reading, an array of length 1.
    module.float = number


def small_worlds() -> None:
    """Let worlds be built without a sky, and with MEMORY for contacts, a hundred times what they need."""
    module = import_module(f"{PACKAGE}.world")
    parse, unparse = module.xmltodict.parse, module.xmltodict.unparse

    def described(document: dict[str, Any]) -> str:
        world = document["mujoco"]
        world["size"] = {"@memory": MEMORY}
        world["asset"]["texture"] = [entry for entry in world["asset"]["texture"] if entry["@type"] != "skybox"]
        return unparse(document)

    module.xmltodict = SimpleNamespace(parse=parse, unparse=described)


def number(value: Any) -> float:
    """The only number in an array of any shape, or a number itself."""
    return float(np.asarray(value).item())


class ScalarIds:
    """A MuJoCo model of which joints can be asked for by an array of length 1."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def jnt(self, joint: Any) -> Any:
        return self.model.jnt(int(number(joint)))


def resampling_error() -> type[Exception]:
    """What the package raises when it finds no place for an object."""
    return import_module(f"{PACKAGE}.utils.common_utils").ResamplingError
