"""Builds the document of `GET /studies/{id}/table`: systems by sets and averages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from app.contract.evaluation import Group
from app.reports.averages import FULL, average
from app.reports.comparison import Pair, average_difference, counterpart, why_not
from app.reports.rendering import AVERAGE_TITLES
from app.reports.scored import ScoredDataset, score_dataset
from app.reports.significance import holm
from app.reports.studies.systems import Kind, StudyFacts, StudySystem

# The paper's order.
_AVERAGES = ("in_domain", "out_of_domain", "full", "english", "multilingual", "other", "all")
_STATUSES = ("complete", "running", "stopped", "failed")
_KINDS: tuple[Kind, ...] = get_args(Kind)


def study_table(
    facts: StudyFacts, development: Sequence[StudySystem], test: Sequence[StudySystem]
) -> dict[str, Any]:
    """Return the JSON document: the study's facts, and a section each for development and test.

    A section is None if it has no systems. Its rows are the base, experts, references and trials,
    trials from the best to the worst on the development sets; its columns are sets, then averages.
    Rates are fractions, over what was decoded: a trial that was stopped has a `fraction` below 1.
    """
    outcome = facts.outcome
    ranked = _ranked(development, facts)
    places = {one.number: place for place, one in enumerate(ranked) if one.kind == "trial"}
    # Stable: other kinds keep their place before the trials.
    tested = sorted(_ranked(test, facts), key=lambda one: places.get(one.number, -1))
    trials: Counter[str] = Counter(one.status for one in ranked if one.kind == "trial")
    return {
        "study_id": facts.id,
        "name": facts.name,
        "status": facts.status,
        "phase": facts.phase,
        "trials": {"asked": trials.total(), **{status: trials[status] for status in _STATUSES}},
        "budget": dict(facts.budget),
        "objectives": list(facts.objectives),
        "constraints": [dict(constraint) for constraint in facts.constraints],
        "winner": outcome.get("winner"),
        "shipped": outcome.get("shipped"),
        "reason": outcome.get("reason"),
        "kept": [dict(kept) for kept in outcome.get("kept", ())],
        "front": list(outcome.get("front", ())),
        "importance": {method: dict(shares) for method, shares in facts.importance.items()},
        "development": _section(ranked, facts, corrected=False),
        "test": _section(tested, facts, corrected=True),
    }


def _ranked(systems: Iterable[StudySystem], facts: StudyFacts) -> list[StudySystem]:
    """Return the systems in the table's order; what cannot be ranked stays in the order given."""
    winner, front = facts.outcome.get("winner"), set(facts.outcome.get("front", ()))

    def place(system: StudySystem) -> tuple[Any, ...]:
        if system.kind != "trial":
            return (_KINDS.index(system.kind),)
        return (
            _KINDS.index("trial"),
            _STATUSES.index(system.status),
            system.feasible is False,
            system.number != winner,
            system.number not in front,
            -system.fraction,
            system.objectives or (float("inf"),),
            system.number or 0,
        )

    return sorted(systems, key=place)


@dataclass(frozen=True, eq=False)
class _Row:
    """A system's results by set, as far as they are comparable, and why the others are not."""

    system: StudySystem
    results: Mapping[str, ScoredDataset]
    reasons: Mapping[str, str]

    @property
    def may_be_best(self) -> bool:
        return self.system.status == "complete" and self.system.kind in {"reference", "trial"}


@dataclass(frozen=True)
class _Column:
    """A set, or an average of the `sets` of a group."""

    kind: str
    name: str
    sets: tuple[str, ...]


@dataclass(frozen=True)
class _Cells:
    """One section's rows, with the comparisons made so far."""

    rows: Sequence[_Row]
    averages: Mapping[str, Mapping[str, Any]]
    _pairs: dict[tuple[str, str, str], Pair] = field(default_factory=dict)

    def of(self, column: _Column) -> list[dict[str, Any]]:
        """Return the column's cell in each row."""
        cells = [self._rate(row, column) for row in self.rows]
        base = next((row for row in self.rows if row.system.kind == "base"), None)
        able = [
            (cell["rate"], row)
            for cell, row in zip(cells, self.rows, strict=True)
            if row.may_be_best and cell["rate"] is not None
        ]
        lowest, best = min(able, key=lambda one: one[0]) if able else (None, None)
        for row, cell in zip(self.rows, cells, strict=True):
            cell["best"] = row.may_be_best and lowest is not None and cell["rate"] == lowest
            cell["against_base"] = self._compared(row, base, column)
            cell["against_best"] = self._compared(row, best, column)
        return cells

    def _rate(self, row: _Row, column: _Column) -> dict[str, Any]:
        if column.kind == "average":
            found = self.averages[row.system.key].get(column.name) or {"macro": None, "ci95": None}
            cell = {"rate": found["macro"], "ci95": found["ci95"]}
            missing = [name for name in column.sets if name not in row.results]
            return cell | ({"not_comparable": missing} if missing else {})
        one = row.results.get(column.name)
        if one is None:
            return {"rate": None, "ci95": None, "not_comparable": row.reasons[column.name]}
        counts = one.rate.counts
        return {
            "rate": counts.rate,
            "ci95": one.interval,
            "utterances": len(one.scores),
            "errors": counts.as_dict(),
            "loop_rate": one.hallucinations["loop_rate"],
        }

    def _compared(self, row: _Row, other: _Row | None, column: _Column) -> dict[str, Any] | None:
        if other is None or other is row:
            return None
        if any(name not in one.results for name in column.sets for one in (row, other)):
            return None
        pairs = [self._pair(row, other, name) for name in column.sets]
        if column.kind == "average":
            found = average_difference(pairs)
        else:
            tested = pairs[0].difference
            found = {name: tested[name] for name in ("delta", "delta_ci95")}
            found["p"] = tested["mapsswe_p"]
        return {"system": other.system.key, **found, "p_holm": None}

    def _pair(self, row: _Row, other: _Row, name: str) -> Pair:
        key = (row.system.key, other.system.key, name)
        return self._pairs.setdefault(key, Pair(row.results[name], other.results[name]))


def _section(
    systems: Sequence[StudySystem], facts: StudyFacts, *, corrected: bool
) -> dict[str, Any] | None:
    if not systems:
        return None
    scored = [(one, [score_dataset(result) for result in one.results]) for one in systems]
    sets = _sets(scored)
    rows = [_row(system, results, sets) for system, results in scored]
    groups = {name: one.evaluated.group for name, one in sets.items()}
    averages = {
        row.system.key: average(
            (one.rate for one in row.results.values()), {name: groups[name] for name in row.reasons}
        )
        for row in rows
    }
    columns = [_Column("set", name, (name,)) for name in sets]
    columns += _average_columns(groups)
    made = _Cells(rows, averages)
    cells = [made.of(column) for column in columns]
    if corrected:
        _correct(rows, cells)
    return {
        "sets": [_set(one, rows) for one in sets.values()],
        "columns": list(_shown(columns, sets)),
        "rows": [
            _described(row.system, facts)
            | {
                f"{kind}s": {
                    column.name: column_cells[number]
                    for column, column_cells in zip(columns, cells, strict=True)
                    if column.kind == kind
                }
                for kind in ("set", "average")
            }
            for number, row in enumerate(rows)
        ],
    }


Scored = Sequence[tuple[StudySystem, Sequence[ScoredDataset]]]


def _sets(scored: Scored) -> dict[str, ScoredDataset]:
    """Return the sets by name, groups in the paper's order, each as the best trial decoded it.

    What the other systems decoded otherwise is not comparable with the trials, which the table is
    about.
    """
    trials_first = sorted(scored, key=lambda one: one[0].kind != "trial")
    found: dict[str, ScoredDataset] = {}
    for _, results in trials_first:
        for one in results:
            found.setdefault(one.evaluated.name, one)
    order = get_args(Group)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1].evaluated.group)))


def _row(
    system: StudySystem, results: Sequence[ScoredDataset], sets: Mapping[str, ScoredDataset]
) -> _Row:
    found = {name: counterpart(one, results) for name, one in sets.items()}
    reasons = {name: why_not(one, results) for name, one in sets.items() if found[name] is None}
    return _Row(system, {name: one for name, one in found.items() if one is not None}, reasons)


def _average_columns(groups: Mapping[str, str]) -> Iterator[_Column]:
    for average_name in _AVERAGES:
        members = tuple(
            name
            for name, group in groups.items()
            if average_name in {group, "all"} or (average_name == "full" and group in FULL)
        )
        if members:
            yield _Column("average", average_name, members)


def _shown(
    columns: Iterable[_Column], sets: Mapping[str, ScoredDataset]
) -> Iterator[dict[str, Any]]:
    """Yield the columns worth showing: an average over the same sets as another column is not."""
    seen: set[tuple[str, ...]] = set()
    for column in columns:
        if column.sets in seen:
            continue
        seen.add(column.sets)
        one = sets.get(column.name) if column.kind == "set" else None
        yield {
            "kind": column.kind,
            "name": column.name,
            "title": AVERAGE_TITLES[column.name] if one is None else column.name,
            "group": column.name if one is None else one.evaluated.group,
            "metric": None if one is None else one.metric,
        }


def _set(one: ScoredDataset, rows: Sequence[_Row]) -> dict[str, Any]:
    name = one.evaluated.name
    whole = max(
        (row.results[name] for row in rows if name in row.results), key=lambda it: len(it.scores)
    )
    utterances = whole.evaluated.result.utterances
    interval = whole.interval or {}
    return {
        "name": name,
        "group": one.evaluated.group,
        "language": one.evaluated.result.language,
        "metric": one.metric,
        "utterances": len(utterances),
        "reference_units": int(whole.lengths.sum()),
        "audio_seconds": round(sum(utterance.audio_seconds for utterance in utterances), 3),
        "unit": interval.get("unit"),
        "units": interval.get("units"),
        "normalizer": one.normalizer.as_record(),
        "num_beams": one.evaluated.result.decoding.num_beams,
        "manifest_sha256": one.evaluated.result.manifest_sha256,
    }


def _described(system: StudySystem, facts: StudyFacts) -> dict[str, Any]:
    kept = {one["trial"]: one.get("merge_id") for one in facts.outcome.get("kept", ())}
    is_trial = system.kind == "trial" and system.number is not None
    return {
        "key": system.key,
        "kind": system.kind,
        "label": system.label,
        "method": system.method,
        "values": dict(system.values),
        "number": system.number,
        "merge_id": system.merge_id or (kept.get(system.number) if is_trial else None),
        "status": system.status,
        "fraction": system.fraction,
        "reason": system.reason,
        "feasible": system.feasible,
        "objectives": None if system.objectives is None else list(system.objectives),
        "winner": is_trial and system.number == facts.outcome.get("winner"),
        "kept": is_trial and system.number in kept,
        "on_front": is_trial and system.number in facts.outcome.get("front", ()),
    }


def _correct(rows: Sequence[_Row], columns: Iterable[Sequence[dict[str, Any]]]) -> None:
    """Correct the p values of the kept merges, in each column for how many merges are tested."""
    for cells in columns:
        for other in ("against_base", "against_best"):
            tested = [
                cell[other]
                for row, cell in zip(rows, cells, strict=True)
                if row.system.kind == "trial" and cell[other] and cell[other]["p"] is not None
            ]
            corrected = holm([one["p"] for one in tested])
            for one, p in zip(tested, corrected, strict=True):
                one["p_holm"] = p
