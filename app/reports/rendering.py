"""Renders `/wer` documents for people and spreadsheets: a plain table, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import dedent
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

CSV_COLUMNS = (
    "system", "row", "name", "group", "language", "metric", "wer", "cer", "macro", "micro",
    "ci95_low", "ci95_high", "ci95_unit", "delta", "mapsswe_p", "probability_of_improvement",
    "datasets", "substitutions", "deletions", "insertions", "hits", "reference_words",
    "utterances", "skipped", "sentence_error_rate", "audio_seconds", "decode_seconds", "rtfx",
    "normalizer", "normalizer_version", "backend", "num_beams", "task", "dtype", "device_type",
    "manifest_sha256",
)  # fmt: skip
_DIFFERENCE = ("delta", "mapsswe_p", "probability_of_improvement")
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


def render_csv(document: Mapping[str, Any]) -> str:
    """Return the document as CSV: a row for each system and dataset, then one an average.

    Column `row` is "dataset" or "average"; the merge's own `system` is "merge". Rates are
    fractions, as in JSON; what does not apply is empty. In another system's row `delta` and what
    follows it say how the merge does against that system.
    """
    output = io.StringIO()
    writer = csv.DictWriter(output, CSV_COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    systems = {"merge": document, **document["systems"]}
    compared = {dataset["name"]: dataset["compared_with"] for dataset in document["datasets"]}
    for system, results in systems.items():
        for row in _rows(results):
            difference = compared.get(row["name"], {}).get(system, {})
            shown = {column: difference.get(column) for column in _DIFFERENCE}
            writer.writerow({"system": system, **row, **shown})
    return output.getvalue()


def render_table(*documents: Mapping[str, Any], labels: Sequence[str] = ()) -> str:
    """Return a plain table in percent: a row a system, a column a dataset, then averages.

    Of several documents the other systems are shown once, then each merge under its label
    (`labels` in the documents' order; the merge's id if not given). Averages are macro; those
    without a dataset in any row are left out, and one over fewer sets than another row's is marked,
    as CER is.
    """
    rows = _systems(documents, labels)
    datasets = _dataset_titles(rows.values())
    averages = [
        group
        for group in AVERAGE_TITLES
        if any(results["averages"].get(group, {}).get("datasets") for results in rows.values())
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("system")
    for title in (*datasets.values(), *(AVERAGE_TITLES[group] for group in averages)):
        table.add_column(title, justify="right")
    for system, results in rows.items():
        rates = {dataset["name"]: dataset[dataset["metric"]] for dataset in results["datasets"]}
        macros = [_macro(rows, results, group) for group in averages]
        table.add_row(system, *(_percent(rates.get(name)) for name in datasets), *macros)
    marked = any(str(cell).endswith(_FEWER) for column in table.columns for cell in column.cells)
    return _plain(table) + (f"{_FEWER} over fewer sets than other rows\n" if marked else "")


def _macro(rows: Mapping[str, Any], results: Mapping[str, Any], group: str) -> str:
    """Return the group's macro average, marked if other rows' averages have more sets in them."""
    here, most = results["averages"].get(group, {}), 0
    for other in rows.values():
        most = max(most, other["averages"].get(group, {}).get("datasets", 0))
    text = _percent(here.get("macro"))
    return text + _FEWER if 0 < here.get("datasets", 0) < most else text


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for dataset in results["datasets"]:
        flat = {**dataset, **dataset["decoding"]}
        yield {
            **{column: flat[column] for column in CSV_COLUMNS if column in flat},
            "language": dataset["language"],
            "row": "dataset",
            "skipped": len(dataset["warnings"]["skipped"]),
            "normalizer": dataset["normalizer"]["name"],
            "normalizer_version": dataset["normalizer"]["version"],
            **_confidence(dataset),
        }
    for group, average in results["averages"].items():
        values = {name: average[name] for name in ("macro", "micro", "datasets")}
        yield {
            "row": "average", "name": group, "group": group, **values, **_confidence(average)
        }  # fmt: skip


def _confidence(results: Mapping[str, Any]) -> dict[str, Any]:
    interval = results["ci95"] or {}
    return {f"ci95_{name}": interval.get(name) for name in ("low", "high", "unit")}


def _systems(
    documents: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    rows: dict[str, Mapping[str, Any]] = {}
    for document in documents:
        for system, results in document["systems"].items():
            rows.setdefault(system, results)
    for position, document in enumerate(documents):
        label = labels[position] if position < len(labels) else document["merge_id"]
        rows[label] = document
    return rows


def _dataset_titles(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    titles: dict[str, str] = {}
    for result in results:
        for dataset in result["datasets"]:
            name = dataset["name"]
            titles[name] = f"{name} (CER)" if dataset["metric"] == "cer" else name
    return titles


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}"


def _plain(table: Table) -> str:
    output = io.StringIO()
    # Wide enough never to wrap: whoever prints it decides what the terminal does.
    console = Console(
        file=output, width=4096, color_system=None, markup=False, legacy_windows=False
    )
    console.print(table, crop=False)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    return dedent("\n".join(line for line in lines if line)) + "\n"
