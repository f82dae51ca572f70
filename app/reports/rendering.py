"""Renders `/wer` documents as a plain-text table."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_FEWER = "*"
AVERAGE_TITLES = {
    "in_domain": "ID avg",
    "out_of_domain": "OOD avg",
    "english": "English avg",
    "multilingual": "Multilingual avg",
    "other": "Other avg",
    "full": "Full avg",
    "all": "All avg",
}


def render_table(
    *documents: Mapping[str, Any],
    labels: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    width: int = 0,
) -> str:
    """Return a table in percent: rows are systems, columns are datasets, then macro averages.

    With several documents, the other systems are shown once, then each merge under its label
    (`labels` in the documents' order; by default the merge's id). `names` are the systems' display
    names. Averages without datasets are left out; an average over fewer datasets than another row's
    is marked, and so is CER. Rates (or only those of datasets) have 95 % intervals if the lines
    are not longer than `width`.
    """
    rows = _systems(documents, labels)
    called = [(names or {}).get(system, system) for system in rows]
    datasets, averages = list(_dataset_columns(rows)), list(_average_columns(rows))
    columns = datasets + averages
    marked = any(cell.rate.endswith(_FEWER) for _, cells in columns for cell in cells)
    note = f"{_FEWER} over fewer datasets than other rows\n" if marked else ""
    note = _notable(rows, called) + note
    if any(cell.rate == "-" for _, cells in columns for cell in cells):
        note += "- not evaluated, or not comparable with the merge\n"
    for shown in (columns, datasets):
        table = _table(called, columns, with_intervals=len(shown))
        fits = max(map(len, table.splitlines())) <= width
        if fits and any(cell.interval for _, cells in shown for cell in cells):
            return f"{table}{note}[95 % confidence intervals]\n"
    return _table(called, columns, with_intervals=0) + note


def _notable(rows: Mapping[str, Any], called: Sequence[str]) -> str:
    """Return a line for each system and dataset with hallucinations or several languages."""
    lines = []
    for system, results in zip(called, rows.values(), strict=True):
        for dataset in results["datasets"]:
            found = dataset.get("hallucinations", {})
            parts = []
            if found.get("loops"):
                share = _percent(found["loop_rate"])
                parts.append(f"{found['loops']} transcripts repeat themselves ({share} %)")
            if found.get("words_on_silence"):
                silent = found["silent_utterances"]
                parts.append(f"{found['words_on_silence']} words in {silent} silent utterances")
            detected = dataset.get("detected_languages", {})
            if len(detected) > 1:
                counts = (f"{code} {count}" for code, count in detected.items())
                parts.append(f"detected languages {', '.join(counts)}")
            if parts:
                lines.append(f"! {system} on {dataset['name']}: {', '.join(parts)}\n")
    return "".join(lines)


@dataclass(frozen=True)
class _Cell:
    rate: str
    interval: str


def _dataset_columns(rows: Mapping[str, Any]) -> Iterator[tuple[str, list[_Cell]]]:
    for name, title in _dataset_titles(rows.values()).items():
        found = [
            {dataset["name"]: dataset for dataset in results["datasets"]}.get(name)
            for results in rows.values()
        ]
        yield (
            title,
            [
                _Cell("-", "")
                if one is None
                else _Cell(_percent(one[one["metric"]]), _interval(one["ci95"]))
                for one in found
            ],
        )


def _average_columns(rows: Mapping[str, Any]) -> Iterator[tuple[str, list[_Cell]]]:
    for group, title in AVERAGE_TITLES.items():
        averages = [results["averages"].get(group, {}) for results in rows.values()]
        most = max((average.get("datasets", 0) for average in averages), default=0)
        if most:
            yield title, [_macro(average, most) for average in averages]


def _macro(average: Mapping[str, Any], most: int) -> _Cell:
    """Return a macro average, marked if another row's covers more datasets."""
    macro = average.get("macro")
    fewer = _FEWER if macro is not None and average["datasets"] < most else ""
    return _Cell(_percent(macro) + fewer, _interval(average.get("ci95")))


def _table(
    rows: Iterable[str], columns: Sequence[tuple[str, Sequence[_Cell]]], *, with_intervals: int
) -> str:
    """Return the table; the first `with_intervals` columns have intervals."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("system")
    for title, _ in columns:
        table.add_column(title, justify="right")
    texts = [
        _texts(cells, intervals=number < with_intervals)
        for number, (_, cells) in enumerate(columns)
    ]
    for number, system in enumerate(rows):
        table.add_row(system, *(column[number] for column in texts))
    return plain_text(table)


def _texts(cells: Sequence[_Cell], *, intervals: bool) -> list[str]:
    widest = max(len(cell.interval) for cell in cells) if intervals else 0
    return [f"{cell.rate} {cell.interval:>{widest}}" if widest else cell.rate for cell in cells]


def _interval(found: Mapping[str, Any] | None) -> str:
    return f"[{100 * found['low']:.1f} {100 * found['high']:.1f}]" if found else ""


def _systems(
    documents: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    rows: dict[str, Mapping[str, Any]] = {}
    for document in documents:
        for system, results in document["systems"].items():
            rows.setdefault(system, _comparable(document, system, results))
    for position, document in enumerate(documents):
        label = labels[position] if position < len(labels) else document["merge_id"]
        rows[label] = document
    return rows


def _comparable(
    document: Mapping[str, Any], system: str, results: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return a system's results without those that are not comparable."""
    # If the merge has several results on a dataset, the last one counts.
    latest = {dataset["name"]: dataset for dataset in document["datasets"]}
    unlike = {name for name, one in latest.items() if system in one.get("not_compared_with", {})}
    return {**results, "datasets": [d for d in results["datasets"] if d["name"] not in unlike]}


def _dataset_titles(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    titles: dict[str, str] = {}
    for result in results:
        for dataset in result["datasets"]:
            name = dataset["name"]
            titles[name] = f"{name} (CER)" if dataset["metric"] == "cer" else name
    return titles


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}"


def plain_text(table: Table) -> str:
    """Return a table as text that is never wrapped."""
    output = io.StringIO()
    # Wide enough never to wrap.
    console = Console(
        file=output, width=4096, color_system=None, markup=False, legacy_windows=False
    )
    console.print(table, crop=False)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    return dedent("\n".join(line for line in lines if line)) + "\n"
