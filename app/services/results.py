"""A merge's current results, by system."""

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
    """The chosen results by system ("merge", "base", ...), oldest first.

    `status` is that of the requested evaluation, or of the newest (`none` without any). `stored`
    has the rows from which the results were chosen.
    """

    status: str
    chosen: dict[str, list[Row]]
    stored: Sequence[Row]

    @property
    def systems(self) -> dict[str, list[EvaluatedDataset]]:
        """The results, unpacked."""
        return {name: [unpack(row) for row in rows] for name, rows in self.chosen.items()}

    @property
    def key(self) -> tuple[object, ...]:
        """A cache key: it changes with every stored row, since replacing a row changes its time."""
        names = ("evaluation_id", "system", "dataset", "created_at")
        rows = tuple(tuple(row[name] for name in names) for row in self.stored)
        return (self.status, rows)


def current_results(
    backend: Backend, merge_id: str, evaluation_id: str | None = None
) -> CurrentResults:
    """Return the current results; NotFoundError if the merge or the evaluation is unknown."""
    row = find_merge(backend, merge_id)
    if evaluation_id is not None:
        status = str(find_evaluation(backend, merge_id, evaluation_id)["status"])
    else:
        newest = evaluations.latest(backend.engine, [merge_id]).get(merge_id)
        status = str(evaluation_summary(row, newest).status)
    stored = evaluations.results(backend.engine, merge_id, evaluation_id)
    by_system: dict[str, list[Row]] = {}
    for chosen in choose(stored):
        by_system.setdefault(str(chosen["system"]), []).append(chosen)
    return CurrentResults(
        status, {name: by_system[name] for name in _order(by_system, row)}, stored
    )


def _order(systems: Iterable[str], merge: Row) -> list[str]:
    experts = [source["name"] for source in merge["sources"]["checkpoints"]]
    known = [MERGE, "base", *experts]
    return sorted(systems, key=lambda name: known.index(name) if name in known else len(known))
