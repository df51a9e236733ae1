"""One way to time ours against a peer: rounds in alternation, medians, and a row of the result table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.peers import Peer
from madiff.diffusion.computing import PLAIN, Compiler, Computing, Recorder, use

HARDWARE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names them, on x86 and on ARM


def wait() -> None:
    """Until a GPU, where there is one, has done what it was given, so that a clock read next tells the truth."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(chunk: Callable[[], int]) -> float:
    """Units of work per second of one chunk, which returns how many units it did."""
    wait()
    start = time.perf_counter()
    units = chunk()
    wait()
    return units / (time.perf_counter() - start)


def alternate(ours: Callable[[], int], peer: Peer | None, rounds: int) -> tuple[list[float], list[float]]:
    """Rates of ours and of the peer, round by round."""
    own, other = [], []
    for _ in range(rounds):
        own.append(rate(ours))
        if peer is not None:
            answer = peer.measure()
            other.append(answer["steps"] / answer["seconds"])
    return own, other


def in_turns(chunks: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Rates of all chunks, which run in this process, round by round after a round that warms them up."""
    rates: dict[str, list[float]] = {name: [] for name in chunks}
    for turn in range(rounds + 1):
        for name, chunk in chunks.items():
            found = rate(chunk)
            if turn:
                rates[name].append(found)
    return rates


@contextmanager
def computing(precision: str, recorder: Recorder | None = None, compiler: Compiler | None = None) -> Iterator[None]:
    """Within it work of ours is done in float32 or bf16, its networks by the compiler and its sampling loops by the
    recorder where there is one.
    """
    use(Computing(None if precision == "float32" else torch.bfloat16, compiler, recorder))
    try:
        yield
    finally:
        use(PLAIN)


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bf16 itself; False where the system does not say."""
    return cpuinfo.exists() and not HARDWARE_BF16.isdisjoint(cpuinfo.read_text().split())


def row(
    name: str, own: list[float], other: list[float], unit: str, versions: dict[str, str],
    missing: str = "not installed",
) -> dict:  # fmt: skip
    """Medians and the median of the pairwise ratios; without a peer the ratio is null, and `missing` says why."""
    ratio = statistics.median(a / b for a, b in zip(own, other, strict=True)) if other else None
    return {
        "name": name,
        "ours": statistics.median(own),
        "peer": statistics.median(other) if other else missing,
        "ratio": ratio,
        "unit": unit,
        "versions": {"torch": torch.__version__, **versions},
    }
