"""A study's table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from app.reports.rendering import plain_text
from app.reports.studies.wording import (
    DIFFERS,
    SECTIONS,
    WORSE,
    Row,
    cells_of,
    column_title,
    counted,
    figure,
    marks_of,
    state_of,
    title_of,
    values_of,
    verdict,
)

_BEST = "*"
_LEGEND = (
    f"percent; {_BEST} best of its column, {DIFFERS} differs from the base, "
    f"{WORSE} worse than the best"
)


def render_study(document: Mapping[str, Any], most: int = 10) -> str:
    """Return the tables of development and test, then the verdict.

    A table has the base, experts and references, and the `most` best trials.
    """
    parts = []
    for name in reversed(SECTIONS):
        section = document[name]
        if section:
            trials = [row for row in section["rows"] if row["kind"] == "trial"]
            others = [row for row in section["rows"] if row["kind"] != "trial"]
            shown = plain_text(_table(section, [*others, *trials[:most]]))
            more = len(trials) - most
            rest = f"and {more} more trial{'' if more == 1 else 's'}\n" if more > 0 else ""
            parts.append(f"{SECTIONS[name]}\n{shown}{rest}{_LEGEND}\n")
    found = verdict(document)
    lines = (counted(document), found.title, *found.evidence)
    return "\n".join((*parts, "".join(f"{_printable(line)}\n" for line in lines)))


def _table(section: Mapping[str, Any], rows: Iterable[Row]) -> Table:
    columns = section["columns"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("system")
    for column in columns:
        table.add_column(column_title(column), justify="right")
    table.add_column("parameters")
    for row in rows:
        state = state_of(row)
        name = f"{title_of(row)} ({state})" if state else title_of(row)
        cells = [
            f"{figure(cell['rate'])}{_BEST if cell['best'] else ''}{marks_of(cell)}"
            for cell in cells_of(row, columns)
        ]
        table.add_row(_printable(name), *cells, _printable(values_of(row)))
    return table


def _printable(text: str) -> str:
    """Return a text on one line, without what would control a terminal."""
    words = " ".join(text.split())
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in words)
