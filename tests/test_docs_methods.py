"""The pages of methods: every file, symbol, method, safeguard and command that they name is there."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from madiff import build, configuration
from madiff.safeguard_options import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
SECTIONS = ["Idea", "Equations", "Deviations", "Run", "Results"]


@cache
def symbols(path):
    """Dotted names of all that a file defines: classes and functions with what is in them, and its own variables."""

    def defined(nodes, prefix):
        for node in nodes:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                yield prefix + node.name
                yield from defined(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))

    return set(defined(ast.parse(path.read_text()).body, ""))


def ids(page):
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    for file, symbol in re.findall(r"`([\w/-]+\.py)(?:::([\w.]+))?`", text):
        assert (ROOT / file).exists(), file
        assert not symbol or symbol in symbols(ROOT / file), f"{file}::{symbol}"
    assert set(re.findall(r"`algo=([\w-]+)`", text)) <= set(build.registry())
    assert set(re.findall(r"`safe=([\w-]+)`", text)) <= set(OPTIONS)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_a_page_has_its_parts_and_its_command_is_accepted(page):
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert re.search(r"`\w[\w/]+\.py::\w", text), "no equation is tied to code"
    commands = re.findall(r"^python -m madiff\.(\w+) (.*)$", text, re.MULTILINE)
    assert commands
    for verb, rest in commands:
        configuration.compose(verb, build.defaults(), shlex.split(rest))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_options_that_a_page_names_belong_to_one_of_its_methods(page):
    text = page.read_text()
    names = set(re.findall(r"algo=([\w-]+)", text))
    known = {key for name in names & set(build.registry()) for key in build.method(name).defaults}
    named = {key for key in re.findall(r"`algo\.(\w+)", text) if key not in ("values", "options")}
    if page.stem in ("safediffuser", "trebi"):
        known = {key for key in configuration.flatten(build.method("diffuser").defaults)}
    assert named <= known, named - known


def test_sections_of_the_deviations_that_pages_send_to_are_there():
    headings = "\n".join(re.findall(r"^## (.*)$", (ROOT / "docs" / "deviations.md").read_text(), re.MULTILINE))
    for page in PAGES:
        part = page.read_text().partition("## Deviations")[2].partition("## Run")[0]
        for title in re.findall(r'"([^"]+)"', part):
            assert title.rstrip(",") in headings, f"{page.name}: {title}"
