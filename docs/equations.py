"""Writes docs/equations.md: which equation of which paper stands where. Run it as `python docs/equations.py`.

The table is read off the docstrings of the code: `arXiv 2010.02502, eq. 12 and 16` in one makes a row, and so does a
bare `eq. 5`, which is of the first paper that the surrounding class or module names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "equations.md"
PACKAGES = ("madiff", "safe", "baselines", "envs")

PAPER = r"arXiv (\d{4}\.\d{5})"
NUMBERS = r"\d+(?:\.\d+)*(?:(?:-| to | and )\d+)*"
PLACE = rf"(?:eq\. {NUMBERS}|algorithm \d+|section {NUMBERS}|app\. [A-Z]\b|table \d+|theorem {NUMBERS})"
PLACES = rf"{PLACE}(?:,? (?:and )?{PLACE})*"
CITED = re.compile(rf"(?:{PAPER}|(Sutton and Barto)), ({PLACES})")
BARE = re.compile(rf"(?<!\w)({PLACES})")
ASIDE = re.compile(r" ?\([^()]*(?:arXiv|eq\.)[^()]*\)")

NAMES = {
    "1509.02971": "DDPG", "1604.04173": "conformal prediction", "1703.00443": "OptNet", "1706.03762": "Transformer",
    "1802.09477": "TD3", "1803.11485": "QMIX", "1812.02900": "BCQ", "2006.04779": "CQL", "2006.11239": "DDPM",
    "2010.02502": "DDIM", "2101.02388": "knowledge distillation of samplers", "2102.09672": "improved DDPM",
    "2105.05233": "classifier guidance", "2106.03400": "ICQ", "2106.06860": "TD3+BC", "2108.13264": "rliable",
    "2110.06169": "IQL", "2111.11188": "OMAR", "2205.09991": "Diffuser", "2206.00364": "EDM",
    "2208.06193": "Diffusion-QL", "2211.01095": "DPM-Solver++", "2212.09748": "DiT", "2301.10677": "Diffusion BC",
    "2303.01469": "consistency models", "2303.06614": "SynthER", "2303.09556": "Min-SNR", "2304.10573": "IDQL",
    "2304.12824": "QGPO", "2305.17330": "MADiff", "2306.00148": "SafeDiffuser", "2307.11620": "OMIGA",
    "2309.06599": "LDCQ", "2402.02439": "DiffStitch", "Sutton and Barto": "Reinforcement Learning, 2nd edition",
}  # fmt: skip

HEAD = """# Equations

Which equation, algorithm or section of which paper stands where in the code. This page is made by
`python docs/equations.py` from the docstrings; the pages under [methods](methods/madiff.md) write the most
important ones out, and [deviations.md](deviations.md) says where we differ.

| paper | where in it | what | in the code |
|---|---|---|---|
"""


class Row(NamedTuple):
    """One place of a paper and the symbol that is made of it."""

    paper: str
    place: str
    what: str
    file: str
    symbol: str


def documented(tree: ast.Module) -> Iterator[tuple[str, str, list[str]]]:
    """(symbol, docstring, docstrings around it from the inside out) of a module and all that is defined in it."""

    def visit(node: ast.AST, name: str, around: list[str]) -> Iterator[tuple[str, str, list[str]]]:
        text = ast.get_docstring(node) or ""
        yield name, text, around
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                yield from visit(child, f"{name}.{child.name}".lstrip("."), [text, *around])

    return visit(tree, "", [])


def places(text: str, around: list[str]) -> Iterator[tuple[str, str]]:
    """(paper, place in it) of every citation of a docstring."""
    text = " ".join(text.split())
    for cited in CITED.finditer(text):
        yield cited[1] or cited[2], cited[3]
    rest = CITED.sub("", text)
    papers = [found[1] for outer in (text, *around) if (found := re.search(PAPER, outer))]
    if papers:
        yield from ((papers[0], bare[1]) for bare in BARE.finditer(rest) if "eq." in bare[1])


def summary(text: str) -> str:
    """The first sentence without what stands in brackets about its source, fit for a table."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    first = re.split(r"(?<=[\w)\]])\. ", ASIDE.sub("", paragraph))[0]
    return first.strip().rstrip(".:;").replace("|", "\\|")


def rows() -> list[Row]:
    """Every citation of an equation in the code, in the order of the papers and of the places in them."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for symbol, text, around in documented(ast.parse(path.read_text(encoding="utf-8"))):
                file = path.relative_to(ROOT).as_posix()
                found += [Row(paper, place, summary(text), file, symbol) for paper, place in places(text, around)]
    return sorted(set(found), key=order)


def order(row: Row) -> tuple[object, ...]:
    return row.paper, [int(n) for n in re.findall(r"\d+", row.place)], row.place, row.file, row.symbol


def line(row: Row) -> str:
    link = f"[{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper[0].isdigit() else row.paper
    paper = f"{NAMES[row.paper]} ({link})" if row.paper in NAMES else link
    symbol = f"`{row.symbol}` in " if row.symbol else ""
    return f"| {paper} | {row.place} | {row.what} | {symbol}[{row.file}](../{row.file}) |"


def page() -> str:
    return HEAD + "\n".join(map(line, rows())) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
