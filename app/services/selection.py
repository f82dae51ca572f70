"""Which stored results count: of each dataset and way of decoding, the newest that succeeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.contract.evaluation import DecodingRecord, EvaluatedDataset

MERGE = "merge"
Row = Mapping[Any, Any]


def choose(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that count, oldest first; `rows` are newest evaluation first."""
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


def unpack(row: Row) -> EvaluatedDataset:
    """Return a stored result: the utterances are kept in a column of their own."""
    document = dict(row["result"])
    document["result"] = {**document["result"], "utterances": row["utterances"]}
    return EvaluatedDataset.model_validate(document)


def _rank(row: Row) -> int:
    """Return 0 for a whole result, 1 for one that skipped utterances, 2 for none; unpacks none."""
    if not row["utterances"]:
        return 2
    return 1 if row["result"]["result"].get("skipped") else 0


def _key(row: Row) -> tuple[object, ...]:
    decoding = DecodingRecord.model_validate(row["result"]["result"]["decoding"])
    return (row["system"], row["dataset"], *decoding.settings.items())
