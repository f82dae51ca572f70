"""Renders `/wer` documents as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

CSV_COLUMNS = (
    "system", "row", "name", "group", "language", "metric", "wer", "cer", "macro", "micro",
    "ci95_low", "ci95_high", "ci95_unit", "delta", "mapsswe_p", "probability_of_improvement",
    "datasets", "substitutions", "deletions", "insertions", "hits", "reference_words",
    "utterances", "skipped", "sentence_error_rate", "audio_seconds", "decode_seconds", "rtfx",
    "normalizer", "normalizer_version", "backend", "num_beams", "task", "dtype", "device_type",
    "manifest_sha256", "not_compared", "silent_utterances", "words_on_silence", "loops",
    "loop_rate",
)  # fmt: skip
_DIFFERENCE = ("delta", "mapsswe_p", "probability_of_improvement")


def render_csv(document: Mapping[str, Any]) -> str:
    """Return the document as CSV: a row for each system and dataset, then one for each average.

    Column `row` is "dataset" or "average"; the merge's `system` is "merge". Rates are fractions, as
    in JSON; cells that do not apply are empty. In another system's row, `delta`, `mapsswe_p` and
    `probability_of_improvement` compare the merge with it. `not_compared` gives the reason if they
    are missing, or, for an average, the datasets that are not comparable.
    """
    output = io.StringIO()
    writer = csv.DictWriter(output, CSV_COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    systems = {"merge": document, **document["systems"]}
    latest = {dataset["name"]: dataset for dataset in document["datasets"]}
    for system, results in systems.items():
        for row in _rows(results):
            mine = latest.get(row["name"], {}) if row["row"] == "dataset" else {}
            difference = mine.get("compared_with", {}).get(system, {})
            shown = {column: difference.get(column) for column in _DIFFERENCE}
            reason = mine.get("not_compared_with", {}).get(system)
            writer.writerow({"system": system, "not_compared": reason, **row, **shown})
    return output.getvalue()


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for dataset in results["datasets"]:
        flat = {**dataset, **dataset["decoding"], **dataset["hallucinations"]}
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
        values = {name: average[name] for name in ("macro", "micro", "datasets", "rtfx")}
        yield {
            "row": "average", "name": group, "group": group, **values, **_confidence(average),
            "not_compared": " ".join(average.get("not_comparable", ())),
        }  # fmt: skip


def _confidence(results: Mapping[str, Any]) -> dict[str, Any]:
    interval = results["ci95"] or {}
    return {f"ci95_{name}": interval.get(name) for name in ("low", "high", "unit")}
