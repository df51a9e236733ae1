"""What a store must satisfy; every failure is one line that names the field and the episode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from madiff.interfaces import UserError

if TYPE_CHECKING:
    from madiff.data.store import EpisodeStore

LARGEST_ACTION = 1.0 + 1e-4  # room for actors that round at the edge of [-1, 1]

DTYPES = {
    "observations": torch.float32,
    "rewards": torch.float32,
    "costs": torch.float32,
    "state": torch.float32,
    "available_actions": torch.bool,
    "terminated": torch.bool,
    "truncated": torch.bool,
    "lengths": torch.int64,
}


def check_store(store: EpisodeStore) -> int:
    """Check every field and return the number of actions (or action dimensions); raises UserError."""
    check_types(store)
    check_shapes(store)
    check_finite(store)
    return check_discrete(store) if store.discrete else check_continuous(store)


def check_types(store: EpisodeStore) -> None:
    for name, values in store.tensors.items():
        accepted = [DTYPES[name]] if name in DTYPES else [torch.int64, torch.float32]
        if values.dtype not in accepted:
            raise UserError(f"has type {values.dtype}", name, accepted)


def check_shapes(store: EpisodeStore) -> None:
    lengths = store.lengths
    if lengths.ndim != 1 or not len(lengths):
        raise UserError("the store holds no episode", "lengths", "at least one episode")
    if int(lengths.min()) < 1:
        raise UserError(f"has length {int(lengths.min())}", f"episode {int(lengths.argmin())}", "at least one step")
    if int(lengths.max()) > len(store.rewards):  # before any sum of them can overflow
        raise UserError(f"has length {int(lengths.max())}", f"episode {int(lengths.argmax())}", "as many as rewards")
    shape = tuple(store.observations.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        raise UserError(f"has shape {shape}", "observations", "(rows, agents >= 1, values >= 1)")
    taken, observed, agents = int(lengths.sum()), int(lengths.sum()) + len(lengths), store.agents
    expected = {
        "observations": (observed, agents, None),
        "actions": (taken, agents) if store.discrete else (taken, agents, None),
        "rewards": (taken, agents),
        "costs": (taken, agents),
        "available_actions": (observed, agents, None),
        "state": (observed, None),
        "terminated": (len(lengths),),
        "truncated": (len(lengths),),
        "lengths": (len(lengths),),
    }
    for name, values in store.tensors.items():
        want = expected[name]
        matches = len(want) == values.ndim and all(w in (None, s) for w, s in zip(want, values.shape, strict=True))
        if not matches or 0 in values.shape:
            shape = ", ".join("any" if w is None else str(w) for w in want)
            raise UserError(f"has shape {tuple(values.shape)}", name, f"({shape})")


def check_finite(store: EpisodeStore) -> None:
    for name, values in store.tensors.items():
        if values.is_floating_point():
            refuse(store, ~torch.isfinite(values), name, "holds NaN or infinity", "finite numbers")


def check_discrete(store: EpisodeStore) -> int:
    actions, available = store.actions, store.available_actions
    size = store.action_size or (int(actions.max()) + 1 if available is None else available.shape[-1])
    if available is not None and available.shape[-1] != size:
        raise UserError(f"lists {available.shape[-1]} actions", "available_actions", f"action_size {size}")
    refuse(store, (actions < 0) | (actions >= size), "actions", "holds an action out of range", f"0 to {size - 1}")
    if available is not None:
        rows = torch.arange(store.transitions) + store.episode_of
        legal = available[rows].gather(-1, actions[..., None])[..., 0]
        refuse(store, ~legal, "actions", "takes an action that is not available", "actions with available_actions true")
    return size


def check_continuous(store: EpisodeStore) -> int:
    size = store.actions.shape[-1]
    if store.action_size not in (0, size):
        raise UserError(f"has {size} dimensions", "actions", f"action_size {store.action_size}")
    refuse(store, store.actions.abs() > LARGEST_ACTION, "actions", "holds an action out of range", "[-1, 1]")
    return size


def refuse(store: EpisodeStore, bad: Tensor, name: str, what: str, allowed: str) -> None:
    """Raise UserError naming the first episode and step where `bad` (rows, ...) is true anywhere."""
    if not bool(bad.any()):
        return
    row = int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
    rows_per_episode = store.lengths + (1 if len(bad) > store.transitions else 0)
    ends = rows_per_episode.cumsum(0)
    episode = int(torch.searchsorted(ends, row, right=True))
    step = row - int(ends[episode] - rows_per_episode[episode])
    raise UserError(what, f"{name}, episode {episode}, step {step}", allowed)
