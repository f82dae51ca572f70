"""Which stored results count: of each dataset and way of decoding, the newest that succeeded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.contract.evaluation import DecodingRecord, EvaluatedDataset
from app.services.backend import Backend
from app.services.evaluations import find as find_evaluation
from app.services.merges import find as find_merge
from app.services.presentation import Row, evaluation_summary
from app.storage import evaluations

MERGE = "merge"


def current_results(
    backend: Backend, merge_id: str, evaluation_id: str | None = None
) -> tuple[str, dict[str, list[EvaluatedDataset]]]:
    """Return (status, results by system): the merge's own under "merge", the base, the experts...

    The status is that of the evaluation asked for, or of the newest (`none` without any).
    Results are oldest first. NotFoundError without the merge, or without that evaluation of it.
    """
    row = find_merge(backend, merge_id)
    if evaluation_id is not None:
        status = str(find_evaluation(backend, merge_id, evaluation_id)["status"])
    else:
        newest = evaluations.latest(backend.engine, [merge_id]).get(merge_id)
        status = str(evaluation_summary(row, newest).status)
    stored = evaluations.results(backend.engine, merge_id, evaluation_id)
    by_system: dict[str, list[EvaluatedDataset]] = {}
    for chosen in choose(stored):
        by_system.setdefault(str(chosen["system"]), []).append(unpack(chosen))
    return status, {name: by_system[name] for name in _order(by_system, row)}


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


def _order(systems: Iterable[str], merge: Row) -> list[str]:
    experts = [source["name"] for source in merge["sources"]["checkpoints"]]
    known = [MERGE, "base", *experts]
    return sorted(systems, key=lambda name: known.index(name) if name in known else len(known))
