"""`make bench-peers`: makes each peer's venv beside ours; one that is there already is left alone."""

from __future__ import annotations

import shutil
import subprocess
import sys

from benchmarks.peers import REQUIREMENTS, ROOT, installed, python_of


def make(name: str, requirements: list[str]) -> None:
    """The venv of a peer, or none at all."""
    place = ROOT / f".venv-{name}"
    try:
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(python_of(name)), "-m", "pip", "install", "--quiet", *requirements], check=True)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def main() -> int:
    for name, requirements in REQUIREMENTS.items():
        if installed(name):
            print(f"{name}: already in .venv-{name}")
            continue
        make(name, requirements)
        print(f"{name}: {', '.join(requirements)} in .venv-{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
