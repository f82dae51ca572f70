"""A study's table as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from app.reports.studies.wording import (
    DIFFERS,
    SECTIONS,
    WORSE,
    Cell,
    Row,
    cells_of,
    column_title,
    counted,
    figure,
    interval_of,
    marks_of,
    notes_of,
    state_of,
    title_of,
    values_of,
    verdict,
)

_SYSTEM = (
    "kind", "label", "number", "method", "status", "fraction", "feasible", "winner", "merge_id",
    "reason",
)  # fmt: skip
CSV_COLUMNS = (
    "section", *_SYSTEM[:4], "values", *_SYSTEM[4:], "row", "name", "group", "metric", "rate",
    "ci95_low", "ci95_high", "utterances", "best", "base_delta", "base_p", "base_p_holm",
    "best_system", "best_delta", "best_p", "best_p_holm",
)  # fmt: skip


def as_csv(document: Mapping[str, Any]) -> str:
    """Return a row for each system and set, then for each average; a single one if it has neither.

    Rates are fractions, as in JSON. `base_delta` is the system's rate minus the base's,
    `best_delta` minus that of `best_system`; cells that do not apply are empty.
    """
    output = io.StringIO()
    writer = csv.DictWriter(output, CSV_COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    for name in SECTIONS:
        for row in (document[name] or {"rows": ()})["rows"]:
            system = {"section": name, "values": json.dumps(row["values"], ensure_ascii=False)}
            system |= {column: row[column] for column in _SYSTEM}
            found = list(_csv_cells(row, document[name]["sets"]))
            writer.writerows(system | cell for cell in found or [{}])
    return output.getvalue()


def _csv_cells(row: Row, sets: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    described = {one["name"]: one for one in sets}
    for kind in ("set", "average"):
        for name, cell in row[f"{kind}s"].items():
            one = described[name] if kind == "set" else {"group": name, "metric": ""}
            interval = cell["ci95"] or {}
            base, best = cell["against_base"] or {}, cell["against_best"] or {}
            yield {
                "row": kind,
                "name": name,
                "group": one["group"],
                "metric": one["metric"],
                "rate": cell["rate"],
                "ci95_low": interval.get("low"),
                "ci95_high": interval.get("high"),
                "utterances": cell.get("utterances"),
                "best": cell["best"],
                **{f"base_{field}": base.get(field) for field in ("delta", "p", "p_holm")},
                **{
                    f"best_{field}": best.get(field) for field in ("system", "delta", "p", "p_holm")
                },
            }


def as_markdown(document: Mapping[str, Any]) -> str:
    """Return the verdict and a table for each section, trials from the best to the worst."""
    found = verdict(document)
    parts = [f"**{_markdown(found.title)}**"]
    if found.evidence:
        parts.append("\n".join(f"- {_markdown(line)}" for line in found.evidence))
    parts.append(counted(document))
    for name, title in SECTIONS.items():
        if document[name]:
            parts += [f"### {title}", _markdown_table(document[name]), notes_of(name)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(section: Mapping[str, Any]) -> str:
    header, lines = _text_rows(section, _markdown, _markdown_cell)
    rule = ["---", "---", *("---:" for _ in header[2:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def _markdown_cell(cell: Cell) -> str:
    rate = f"**{figure(cell['rate'])}**" if cell["best"] else figure(cell["rate"])
    return f"{rate}{marks_of(cell)} {interval_of(cell)}".rstrip()


def _markdown(text: str) -> str:
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|$~]|\](?=[(\[:]))", r"\\\1", plain)


def as_latex(document: Mapping[str, Any]) -> str:
    """Return a tabular for each section (booktabs), with what a caption needs in comments."""
    parts = [f"% {_comment(verdict(document).title)}. {counted(document)}"]
    parts.append(r"% \usepackage{booktabs}")
    for name, title in SECTIONS.items():
        if document[name]:
            parts += [f"\n% {title}. {_comment(notes_of(name))}", _latex_table(document[name])]
    return "\n".join(parts) + "\n"


def _latex_table(section: Mapping[str, Any]) -> str:
    header, lines = _text_rows(section, _latex, _latex_cell)
    kinds = [row["kind"] for row in section["rows"]]
    body = []
    for place, cells in enumerate(lines):
        if place and kinds[place] == "trial" != kinds[place - 1]:
            body.append(r"\midrule")
        body.append(f"{' & '.join(cells)} \\\\")
    return "\n".join(
        (
            rf"\begin{{tabular}}{{ll{'r' * len(header[2:])}}}",
            r"\toprule",
            f"{' & '.join(header)} \\\\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        )
    )


def _latex_cell(cell: Cell) -> str:
    rate = "--" if cell["rate"] is None else f"{100 * cell['rate']:.1f}"
    rate = rf"\textbf{{{rate}}}" if cell["best"] else rate
    signs = {DIFFERS: r"\dagger", WORSE: r"\ddagger"}
    marks = "".join(signs[mark] for mark in marks_of(cell))
    interval = cell["ci95"]
    shown = ""
    if interval:
        low, high = (f"{100 * interval[end]:.1f}" for end in ("low", "high"))
        shown = rf" {{\scriptsize [{low}, {high}]}}"
    return f"{rate}{f'$^{{{marks}}}$' if marks else ''}{shown}"


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "λ": r"$\lambda$", "β": r"$\beta$", "−": "$-$", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
    # After a line's end they would be its arguments.
    "[": "{[}", "]": "{]}", "*": "{*}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _comment(text: str) -> str:
    return " ".join(text.split())


def _text_rows(
    section: Mapping[str, Any], escape: Callable[[str], str], write: Callable[[Cell], str]
) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: the system, its parameters, and a cell a column."""
    columns = section["columns"]
    header = ["system", "parameters", *(escape(column_title(one)) for one in columns)]
    rows = []
    for row in section["rows"]:
        state = state_of(row)
        name = escape(f"{title_of(row)} ({state})" if state else title_of(row))
        rows.append([name, escape(values_of(row)), *map(write, cells_of(row, columns))])
    return header, rows
