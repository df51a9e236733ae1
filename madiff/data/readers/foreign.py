"""What the readers of other people's folders share: finding the one meant, cutting into episodes, naming damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from madiff.data.readers import native
from madiff.interfaces import UserError

# All that NumPy, its parser of headers, JSON and tensorstore may say of bytes that make no sense.
DAMAGE = (*native.DAMAGE, EOFError, SyntaxError, TokenError)


def choose(path: Path, holds: Callable[[Path], bool], kind: str) -> Path:
    """`path` itself if it `holds` data, else its only subfolder that does; raises UserError where that is unclear."""
    if not path.is_dir():
        raise UserError("is not a folder", str(path), f"a folder of {kind}")
    if holds(path):
        return path
    inside = candidates(path, holds)
    if not inside:
        raise UserError(f"holds no {kind}", str(path))
    if len(inside) > 1:
        raise UserError(f"holds {len(inside)} data sets: name one", str(path), [str(path / name) for name in inside])
    return path / inside[0]


def candidates(path: Path, holds: Callable[[Path], bool]) -> list[str]:
    """Names of the subfolders that hold data."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and holds(entry))


def source(folder: Path) -> str:
    """How a card names a folder: never by where it lies on this machine."""
    return folder.resolve().name


@contextmanager
def refusals(path: Path, kind: str) -> Iterator[None]:
    """Whatever goes wrong while reading `path`, as one UserError that names it."""
    try:
        with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, which is refused by row
            yield
    except PermissionError as error:
        raise UserError("may not be read (permission denied)", str(error.filename or path)) from None
    except UserError as error:
        raise error if error.where.startswith(str(path)) else UserError(f"unusable data: {error}", str(path)) from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"damaged, or no {kind} ({reason})", str(path)) from None


def cut(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the rows after which an episode ends, (T,) bool with the last one true, to the store's row numbers.

    Returns lengths (E,), rows (T,): where the observation of each transition lies among sum(T_e + 1) rows, and
    final (E,): where the observation after each episode's last transition lies.
    """
    last = np.flatnonzero(ends)
    lengths = np.diff(last, prepend=-1)
    episode_of = np.repeat(np.arange(len(last)), lengths)
    return lengths, np.arange(len(ends)) + episode_of, last + 1 + np.arange(len(last))


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
