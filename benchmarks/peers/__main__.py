"""`make bench-peers`: makes each peer's venv beside ours; one that is there already is left alone."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.peers import REQUIREMENTS, ROOT, installed, python_of


def main() -> int:
    for name, requirements in REQUIREMENTS.items():
        if installed(name):
            print(f"{name}: already in .venv-{name}")
            continue
        subprocess.run([sys.executable, "-m", "venv", str(ROOT / f".venv-{name}")], check=True)
        subprocess.run([str(python_of(name)), "-m", "pip", "install", "--quiet", *requirements], check=True)
        print(f"{name}: {', '.join(requirements)} in .venv-{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
