"""A merge's results that count, by system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.contract.evaluation import EvaluatedDataset
from app.services.backend import Backend
from app.services.evaluations import find as find_evaluation
from app.services.merges import find as find_merge
from app.services.presentation import Row, evaluation_summary
from app.services.selection import MERGE, choose, unpack
from app.storage import evaluations


@dataclass(frozen=True)
class CurrentResults:
    """Results by system, oldest first: the merge's own under "merge", the base, the experts...

    The status is that of the evaluation asked for, or of the newest (`none` without any). `stored`
    are the rows that they were chosen from.
    """

    status: str
    systems: dict[str, list[EvaluatedDataset]]
    stored: Sequence[Row]


def current_results(
    backend: Backend, merge_id: str, evaluation_id: str | None = None
) -> CurrentResults:
    """Return what counts now; NotFoundError without the merge, or that evaluation of it."""
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
    systems = {name: by_system[name] for name in _order(by_system, row)}
    return CurrentResults(status, systems, stored)


def _order(systems: Iterable[str], merge: Row) -> list[str]:
    experts = [source["name"] for source in merge["sources"]["checkpoints"]]
    known = [MERGE, "base", *experts]
    return sorted(systems, key=lambda name: known.index(name) if name in known else len(known))
