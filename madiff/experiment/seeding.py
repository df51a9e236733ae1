"""One root seed, any number of independent named streams."""

from __future__ import annotations

import hashlib
import json

import torch


def derive(seed: int, *names: str | int) -> int:
    """The seed of the stream `names` under the root `seed`: in [0, 2**32), the same on every machine and version.

    32 bits because that is what every consumer takes (torch's CPU generator and numpy's legacy one read no more).
    """
    text = json.dumps([int(seed), *names])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator on `device` at the start of the stream `names`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))
