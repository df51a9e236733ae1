"""The shapes that signatures declare are those that calls have; and the packages say that they are typed."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import madiff

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("safe", "madiff.data", "madiff.diffusion")


def test_calls_keep_to_the_shapes_they_declare():
    """In a process of its own: checks are put into modules as they are imported, and nothing else has them."""
    hook = ["-p", "tests.shapes", f"--jaxtyping-packages={','.join(PACKAGES)},tests.shapes.checked"]
    files = ["tests/shape_mistakes.py", "tests/data/test_normalizers.py", "tests/safe/test_sets.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *hook, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("package", ["madiff", "safe", "envs", "baselines"])
def test_packages_are_marked_as_typed_and_bring_the_mark_along(package):
    assert (ROOT / package / "py.typed").exists()
    brought = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in brought[package]


def test_every_function_of_the_package_has_types():
    """What type checkers are told of is what there is, and no result is anything at all."""
    tree = ast.parse((ROOT / "madiff" / "__init__.py").read_text())
    told = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    assert set(madiff.__all__) - {"load"} <= told
    for name in set(madiff.__all__) - {"Plan"}:
        hints = get_type_hints(getattr(madiff, name), localns=vars(__import__("madiff.interfaces").interfaces))
        assert hints["return"] is not Any, name
