"""A table in one description, written as Markdown, CSV and HTML and printed in the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from html import escape

from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

EMPTY = "–"  # a cell without a value
TELLING = {"better": "green", "worse": "red"}  # cells that stand out, with their colours in the terminal
ROOM = 150  # characters of a line that a page has room for
LONG = 30  # characters of a cell that may be broken


@dataclass(frozen=True)
class Table:
    """rows: one text per column; the first column names the row. notes: lines below it."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def without(self, names: Collection[str]) -> Table:
        """The same without the rows and columns that are called so."""
        kept = [place for place, column in enumerate(self.columns) if column not in names]
        rows = [[row[place] for place in kept] for row in self.rows if row[0] not in names]
        return replace(self, columns=[self.columns[place] for place in kept], rows=rows)

    def turned(self) -> Table:
        """The same with a row for every column but the first."""
        columns, *rows = zip(self.columns, *self.rows, strict=True)
        return replace(self, columns=columns, rows=rows)

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        body = [line(self.columns), "|" + "---|" * len(self.columns), *map(line, self.rows)]
        return "\n".join([f"## {self.title}", "", *body, "", *(f"{note}\n" for note in self.notes)])

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()

    def width(self) -> int:
        """Characters of its lines, with what stands between the columns."""
        return sum(max(map(len, column)) + 3 for column in zip(self.columns, *self.rows, strict=True))

    def html(self) -> str:
        """As it is, or turned on its side where the page has no room for it and that makes it narrower."""
        shown = min((self, self.turned()), key=Table.width) if self.width() > ROOM else self
        notes = "".join(f"<p class=note>{escape(note)}</p>" for note in self.notes)
        body = "".join(html_row(row, "td") for row in shown.rows)
        head = html_row(shown.columns, "th")
        return f"<h3>{escape(self.title)}</h3><table><thead>{head}</thead><tbody>{body}</tbody></table>{notes}"

    def terminal(self) -> RichTable:
        columns = (Column(Text(name), justify="right" if at else "left") for at, name in enumerate(self.columns))
        made = RichTable(*columns)
        for row in self.rows:
            made.add_row(*(Text(cell, style=TELLING.get(cell, "")) for cell in row))
        return made


def html_row(cells: Sequence[str], tag: str) -> str:
    def cell(text: str) -> str:
        mark = text if tag == "td" and text in TELLING else "long" if len(text) > LONG else ""
        return f"<{tag}{mark and f' class={mark}'}>{escape(text)}</{tag}>"

    return f"<tr>{''.join(map(cell, cells))}</tr>"
