"""`python -m study.table`: prints the study's tables in Markdown from docs/study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from study.choose import COEFFICIENT, RESULTS
from study.recipes import COEFFICIENTS, SCALED

_AVERAGES = {"in_domain": "ID avg", "out_of_domain": "OOD avg", "full": "Full avg"}
_LABELS = {"full-ft": "Full-FT"}
Row = Mapping[str, Any]


def render(document: Mapping[str, Any]) -> str:
    """Return a Markdown table in percent, one row per system, with 95 % intervals in brackets."""
    rows: Sequence[Row] = document["rows"]
    sets = list(rows[0]["datasets"])
    header = ["system", "λ", *sets, *_AVERAGES.values(), "OOD avg, capped"]
    lines = [header, ["---", "---:", *("---:" for _ in header[2:])]]
    lines += [_cells(row, sets) for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def render_dev(dev: Mapping[str, Any]) -> str:
    """Return a Markdown table of the dev sets' average by method and λ."""
    lines = [["method", *(f"λ = {value:g}" for value in COEFFICIENTS)]]
    lines.append(["---", *("---:" for _ in COEFFICIENTS)])
    for method in SCALED:
        rates = [dev[method][str(value)]["average"] for value in COEFFICIENTS]
        lines.append([method, *(f"{100 * rate:.1f}" for rate in rates)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: Row, sets: Sequence[str]) -> list[str]:
    chosen = row.get("parameters", {}).get(COEFFICIENT)
    rates = [(row["datasets"][name]["wer"], row["datasets"][name]["ci95"]) for name in sets]
    rates += [(average["macro"], average["ci95"]) for average in _averages(row)]
    shown = [f"{100 * rate:.1f} [{100 * low:.0f}–{100 * high:.0f}]" for rate, (low, high) in rates]
    return [
        _LABELS.get(row["system"], str(row["system"])),
        f"{chosen:g}" if chosen else "",
        *shown,
        f"{100 * row['capped']['out_of_domain']:.1f}",
    ]


def _averages(row: Row) -> list[Mapping[str, Any]]:
    return [row["averages"][group] for group in _AVERAGES]


def main() -> None:
    """Print both tables."""
    print(render(json.loads((RESULTS / "results.json").read_text())))
    print(render_dev(json.loads((RESULTS / "dev.json").read_text())), end="")


if __name__ == "__main__":
    main()
