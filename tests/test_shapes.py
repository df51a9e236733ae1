"""The shapes that signatures declare are those that calls have; and the packages say that they are typed."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import madiff

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("safe", "madiff.data", "madiff.diffusion")


def test_calls_keep_to_the_shapes_they_declare():
    """In a process of its own: checks are put into modules as they are imported, and nothing else has them."""
    hook = ["-p", "tests.shapes", f"--jaxtyping-packages={','.join(PACKAGES)},tests.shapes.checked"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *hook, "tests/shape_mistakes.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("package", ["madiff", "safe", "envs", "baselines"])
def test_packages_are_marked_as_typed_and_bring_the_mark_along(package):
    assert (ROOT / package / "py.typed").exists()
    brought = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in brought[package]


def test_every_function_of_the_package_has_types():
    """What type checkers are told of is what there is, with every argument and every result."""
    trees = [ast.parse((ROOT / "madiff" / name).read_text()) for name in ("__init__.py", "api.py")]
    told = {name.name for node in ast.walk(trees[0]) if isinstance(node, ast.ImportFrom) for name in node.names}
    functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert set(madiff.__all__) - {"load"} <= told
    for name in set(madiff.__all__) - {"Plan"}:
        given, result = functions[name].args, functions[name].returns
        assert result is not None and ast.unparse(result) != "Any", name
        assert all(one.annotation for one in [*given.posonlyargs, *given.args, *given.kwonlyargs]), name
