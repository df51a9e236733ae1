"""docs/equations.md: it is what the docstrings say now, and all that it names is there."""

import ast
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def generator():
    found = importlib.util.spec_from_file_location("equations", ROOT / "docs" / "equations.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


equations = generator()


def test_the_page_is_what_the_docstrings_say():
    assert equations.PAGE.read_text() == equations.page(), "the page is old: make docs"


def test_every_row_leads_to_a_file_and_a_symbol_in_it():
    rows = equations.rows()
    assert len(rows) > 50 and len({row.paper for row in rows}) > 20
    for row in rows:
        symbols = {symbol for symbol, *_ in equations.documented(ast.parse((ROOT / row.file).read_text()))}
        assert row.symbol in symbols and row.what, row


def test_citations_are_read_in_all_their_forms():
    def read(text, *around):
        return list(equations.places(text, list(around)))

    assert read("DDIM (arXiv 2010.02502, eq. 12 and 16).") == [("2010.02502", "eq. 12 and 16")]
    assert read("D (arXiv 2206.00364,\n    eq. 7, table 1).") == [("2206.00364", "eq. 7, table 1")]
    assert read("Returns (Sutton and Barto, eq. 12.20).") == [("Sutton and Barto", "eq. 12.20")]
    assert read("The penalty (eq. 4 of OMAR).", "OMAR (arXiv 2111.11188) and TD3 (arXiv 1802.09477)") == [
        ("2111.11188", "eq. 4")
    ]
    assert read("Rows (eq. 10; w = 100).", "", "Forms (arXiv 2306.00148)") == [("2306.00148", "eq. 10")]
    assert read("Nothing of section 3.", "Forms (arXiv 2306.00148)") == [] == read("By eq. 3, without a paper.")
    assert equations.summary("DDIM (arXiv 2010.02502, eq. 12): a | b.\n\nMore.") == "DDIM: a \\| b"
