"""The libraries a user would otherwise pick, each in a venv of its own, driven over a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# name -> what pip installs into .venv-NAME
REQUIREMENTS: dict[str, list[str]] = {
    "jaxmarl": ["jaxmarl==0.2.0"],
    "qpth": ["qpth==0.0.18", "numpy<2", "torch==2.13.0"],
    "diffusers": ["diffusers==0.42.1", "torch==2.13.0"],
    "d3rlpy": ["d3rlpy==2.8.1"],
}


def python_of(name: str) -> Path:
    return ROOT / f".venv-{name}" / "bin" / "python"


class PeerFailed(RuntimeError):
    """The peer ended before it had answered: with which exit code, and what it said last."""


class Peer:
    """A peer's script under its own interpreter: it says when it is ready, then times one chunk per request."""

    def __init__(self, name: str, script: str, *arguments: object) -> None:
        command = [str(python_of(name)), str(ROOT / "benchmarks" / "peers" / script), *map(str, arguments)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self.complaints = tempfile.TemporaryFile("w+")  # a file never fills up, and nobody wants all of it
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True, env=environment
        )
        self.versions = self._answer()

    def measure(self) -> dict[str, float]:
        """One timed chunk: {"steps": ..., "seconds": ...}."""
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.complaints.close()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.complaints.seek(0)
            last = next((line for line in reversed(self.complaints.read().splitlines()) if line.strip()), "")
            raise PeerFailed(f"stopped with exit code {code}" + (f" ({last.strip()[:80]})" if last else ""))
        return json.loads(line)


def installed(name: str) -> bool:
    return python_of(name).exists()


def started(name: str, script: str, *arguments: object) -> tuple[Peer | None, str]:
    """The peer, or None and why: it may not be installed, and some stop at what others can do."""
    if not installed(name):
        return None, "not installed"
    try:
        return Peer(name, script, *arguments), ""
    except PeerFailed as failure:
        return None, str(failure)
