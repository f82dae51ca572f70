"""Chooses the stored results that count, and finds the newest evaluation of each dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.contract.evaluation import DecodingRecord, EvaluatedDataset

MERGE = "merge"
_RANKS = ("succeeded", "partial", "failed")
Row = Mapping[Any, Any]


def choose(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that count, oldest first; `rows` come newest evaluation first.

    For each system, dataset and decoding settings, that is the newest complete result, or the
    newest if none is complete.
    """
    best: dict[tuple[object, ...], tuple[int, Row]] = {}
    for row in rows:
        rank = _rank(row)
        known = best.get(_key(row))
        if known is None or rank < known[0]:
            best[_key(row)] = (rank, row)
    positions = {id(row): position for position, row in enumerate(rows)}
    ages = {row["evaluation_id"]: -index for index, row in enumerate(rows)}
    kept = [row for _, row in best.values()]
    return sorted(kept, key=lambda row: (ages[row["evaluation_id"]], positions[id(row)]))


def standings(found: Sequence[Row], rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return `{"name", "evaluation_id", "status"}` of the newest evaluation of each dataset.

    `found` are evaluations and `rows` their results, newest evaluation first. The status is the
    evaluation's, or, if it has succeeded, that of the merge's result on the dataset. Cancelled
    evaluations do not count.
    """
    own = {
        (row["evaluation_id"], row["dataset"]): _RANKS[_rank(row)]
        for row in rows
        if row["system"] == MERGE
    }
    newest: dict[str, dict[str, str]] = {}
    for one in reversed(found):
        if one["status"] == "cancelled":
            continue
        ended = one["status"] in {"succeeded", "partial"}
        for name in (dataset["name"] for dataset in one["spec"]["datasets"]):
            status = own.get((one["id"], name), "failed") if ended else str(one["status"])
            newest[name] = {"name": name, "evaluation_id": one["id"], "status": status}
    return list(newest.values())


def unpack(row: Row) -> EvaluatedDataset:
    """Return a stored result, with the utterances from their own column."""
    document = {**row["result"], "evaluation_id": row["evaluation_id"]}
    document["result"] = {**document["result"], "utterances": row["utterances"]}
    return EvaluatedDataset.model_validate(document)


def _rank(row: Row) -> int:
    """Return 0 for a complete result, 1 if utterances were skipped, 2 if it has none."""
    if not row["utterances"]:
        return 2
    return 1 if row["result"]["result"].get("skipped") else 0


def _key(row: Row) -> tuple[object, ...]:
    decoding = DecodingRecord.model_validate(row["result"]["result"]["decoding"])
    return (row["system"], row["dataset"], *decoding.settings.items())
