"""Files that may be anybody's, read whole as bytes, JSON or YAML: an OSError or a ValueError of one line otherwise."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import yaml

LARGEST_YAML = 100_000
"""Values in a file, each counted as often as it would be written out."""


def read_bytes(path: Path) -> bytes:
    """A plain file's content; a pipe would be waited for, and a device may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The value that a file of JSON holds."""
    return parse_json(read_bytes(path))


def parse_json(text: bytes) -> Any:
    """The value that a text of JSON holds, no deeper than whoever writes it again can follow."""
    try:
        value = json.loads(text)
        written_out(value, {})
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def read_yaml(path: Path) -> Any:
    """The plain values that a file of YAML holds; no tag makes an object."""
    try:
        value = yaml.safe_load(read_bytes(path))
        size = written_out(value, {})
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    if size > LARGEST_YAML:
        raise ValueError("names the same values over and over")
    return value


def written_out(value: Any, known: dict[int, int]) -> int:
    """How many values a text of `value` would hold, where aliases say a value once and mean it many times."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = LARGEST_YAML + 1  # until it is counted: met again, it lies within itself
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(written_out(item, known) for item in inner)
    return known[id(value)]
