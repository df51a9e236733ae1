"""The lines for the shell that repeat a run or an evaluation: what they were told besides the defaults."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from madiff import build, configuration
from madiff.configuration import flatten
from madiff.interfaces import UserError
from madiff.schema import shown

SESSION = ("run_dir", "resume", "tracking")  # of a process, not of what it makes


def training(config: Mapping[str, Any]) -> str | None:
    """The line of madiff.train for a config.yaml; None where it is told things that only a program can say."""
    chosen = {group: config[group]["name"] for group in ("env", "algo", "safe") if group in config}
    choices = [f"{group}={name}" for group, name in chosen.items() if (group, name) != ("safe", "none")]
    try:
        defaults = flatten(configuration.compose("train", build.defaults(), choices))
    except UserError:
        return None
    passed = [*SESSION, *(f"{group}.name" for group in chosen)]
    changed = [f"{key}={shown(value)}" for key, value in flatten(config).items()
               if key not in passed and (key not in defaults or defaults[key] != value)]  # fmt: skip
    return shlex.join(["python", "-m", "madiff.train", *choices, *changed])


def evaluation(told: Mapping[str, Any], run: Path) -> str | None:
    """The line of madiff.evaluate for an evaluation.json of this run."""
    safe = told.get("safe") or {"name": "trained"}
    try:
        defaults = configuration.compose("evaluate", build.defaults(), [f"safe={safe['name']}"])["safe"]
    except UserError:
        return None
    given = {f"algo.{key}": value for key, value in told["options"].items()}
    given |= {f"env.{key}": value for key, value in told["env_options"].items()}
    given |= {"safe": safe["name"]} if safe["name"] != "trained" else {}
    given |= {f"safe.{key}": value for key, value in safe.items() if key != "name" and defaults.get(key) != value}
    given |= {"cost_limit": told["cost_limit"]} if told.get("cost_limit") is not None else {}
    options = {"run": run, "episodes": told["episodes"], "seed": told["seed"], **given}
    return shlex.join(["python", "-m", "madiff.evaluate", *(f"{key}={shown(v)}" for key, v in options.items())])
