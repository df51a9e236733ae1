"""Where metrics go besides metrics.jsonl; the only file that knows wandb."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from madiff.interfaces import UserError

MODES = ("none", "wandb-offline", "wandb")
PROJECT = "madiff"


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self) -> None: ...


def make_tracker(
    mode: Literal["none", "wandb-offline", "wandb"], run_dir: Path, config: Mapping[str, Any], name: str
) -> Tracker | None:
    """A tracker that never prompts and never prints; None for mode "none".

    "wandb-offline" writes below run_dir/wandb, for `wandb sync` later; "wandb" needs a login or WANDB_API_KEY.
    """
    if mode not in MODES:
        raise UserError(f"{mode!r} is not known", "tracking", MODES)
    return None if mode == "none" else _Wandb(mode, run_dir, config, name)


class _Wandb:
    def __init__(self, mode: str, run_dir: Path, config: Mapping[str, Any], name: str):
        import wandb  # Half a second, and only for those who ask for it.

        online = mode == "wandb"
        if online and not wandb.login(prompt=False, verify=False):
            raise UserError(
                "tracking=wandb needs a wandb login", "tracking", "`wandb login`, WANDB_API_KEY, tracking=wandb-offline"
            )
        try:
            self._run = wandb.init(
                mode="online" if online else "offline",
                project=PROJECT,
                name=name,
                id=_identity(run_dir),
                resume="allow" if online else None,
                dir=str(run_dir),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
            )
        except (wandb.Error, OSError) as error:
            raise UserError(f"wandb cannot start ({error})", "tracking", MODES) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


def _identity(run_dir: Path) -> str:
    """The run's id at wandb, kept in the run directory so that a resumed run goes on with the same curves."""
    path = run_dir / "wandb" / "run-id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text()
