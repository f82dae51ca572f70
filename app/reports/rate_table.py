"""The table of a report: rows are datasets and averages, columns are systems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.contract.evaluation import ErrorCounts
from app.reports.comparison import counterpart
from app.reports.rendering import AVERAGE_TITLES
from app.reports.scored import ScoredDataset
from app.reports.wer import ScoredSystems

MERGE = "merge"
# The p value below which a difference is marked.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Cell:
    """One system's rate, as a fraction; None if it is not comparable with the merge's.

    `counts` are the errors behind it, which averages do not have.
    """

    system: str
    rate: float | None = None
    low: float | None = None
    high: float | None = None
    is_best: bool = False
    loop_rate: float | None = None
    counts: ErrorCounts | None = None


@dataclass(frozen=True)
class Difference:
    """The merge's rate minus the base's; `verdict` is better, worse or open."""

    delta: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: Literal["better", "worse", "open"] = "open"


@dataclass(frozen=True)
class Row:
    """A dataset's rates or a group's macro averages."""

    title: str
    group: str
    metric: str | None
    cells: tuple[Cell, ...]
    difference: Difference | None = None


def rate_rows(document: Mapping[str, Any], scored: ScoredSystems) -> tuple[list[Row], list[Row]]:
    """Return (rows of the merge's datasets, rows of non-empty averages).

    Only comparable rates of other systems are shown: same manifest, decoding settings and
    normaliser. The best rate of a row is marked, including ties.
    """
    datasets = [
        _dataset_row(described, one, scored.others)
        for described, one in zip(document["datasets"], scored.merge, strict=True)
    ]
    systems = {MERGE: document["averages"]} | {
        name: found["averages"] for name, found in document["systems"].items()
    }
    averages = [
        _average_row(group, systems)
        for group in AVERAGE_TITLES
        if document["averages"].get(group, {}).get("datasets")
    ]
    return datasets, averages


def _dataset_row(
    described: Mapping[str, Any],
    mine: ScoredDataset,
    others: Mapping[str, Sequence[ScoredDataset]],
) -> Row:
    found = {MERGE: mine} | {
        name: other
        for name, results in others.items()
        if (other := counterpart(mine, results)) is not None
    }
    cells = [
        Cell(
            name,
            one.rate.counts.rate,
            *_bounds(one.interval),
            loop_rate=one.hallucinations["loop_rate"],
            counts=one.rate.counts,
        )
        for name, one in found.items()
    ]
    missing = [Cell(name) for name in others if name not in found]
    title, metric = described["name"], described["metric"].upper()
    marked = _in_order((*cells, *missing), others)
    base = described["compared_with"].get("base")
    return Row(title, described["group"], metric, _mark_best(marked), base and _difference(base))


def _average_row(group: str, systems: Mapping[str, Mapping[str, Any]]) -> Row:
    cells = []
    for name, averages in systems.items():
        average = averages.get(group) or {"macro": None, "ci95": None}
        cells.append(Cell(name, average["macro"], *_bounds(average["ci95"])))
    rates = {cell.system: cell.rate for cell in cells}
    mine, base = rates[MERGE], rates.get("base")
    # No verdict: there is no test for averages.
    change = None if mine is None or base is None else Difference(mine - base)
    return Row(AVERAGE_TITLES[group], group, None, _mark_best(cells), change)


def _difference(found: Mapping[str, Any]) -> Difference | None:
    if found["delta"] is None:
        return None
    delta, p = found["delta"], found["mapsswe_p"]
    interval = _bounds(found["delta_ci95"])
    if p is None or p >= SIGNIFICANT:
        return Difference(delta, *interval, p)
    return Difference(delta, *interval, p, "better" if delta < 0 else "worse")


def _mark_best(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    cells = tuple(cells)
    rates = [cell.rate for cell in cells if cell.rate is not None]
    if len(rates) < 2:
        return cells
    return tuple(replace(cell, is_best=cell.rate == min(rates)) for cell in cells)


def _in_order(cells: Sequence[Cell], others: Mapping[str, Any]) -> Iterator[Cell]:
    by_name = {cell.system: cell for cell in cells}
    return (by_name[name] for name in (MERGE, *others))


def _bounds(interval: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    return (interval["low"], interval["high"]) if interval else (None, None)
