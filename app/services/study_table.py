"""A study's table: systems by sets, as JSON and text, and its page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Condition
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache, cached

from app.contract.evaluation import EvaluatedDataset
from app.contract.spaces import Study
from app.contract.states import FINAL
from app.services.backend import Backend
from app.services.health import versions
from app.services.selection import MERGE, choose, unpack
from app.services.studies import find, is_left, study_of
from app.storage import evaluations, studies

if TYPE_CHECKING:
    from app.reports.studies.systems import StudyFacts, StudySystem

Row = Mapping[Any, Any]
# Tables in memory: one of 60 trials takes seconds to score.
_MOST_TABLES = 32


def table(backend: Backend, study_id: str) -> dict[str, Any]:
    """Return the table as JSON; NotFoundError if the study is unknown."""
    row = find(backend, study_id)
    return _table(backend, row, studies.trials(backend.engine, study_id))


def _key(backend: Backend, row: Row, trials: Sequence[Row]) -> tuple[object, ...]:
    """Return what changes with everything that the table shows."""
    scored = tuple((one["status"], one["rungs"]) for one in trials)
    # A running study renews its lease every other second: its table is never older.
    alive = row["fence"], row["lease_expires_at"]
    return (row["id"], *alive, row["status"], row["phase"], str(row["outcome"]), scored)


# With a Condition, a request waits for another that computes the same table.
@cached(LRUCache(_MOST_TABLES), key=_key, condition=Condition())
def _table(backend: Backend, row: Row, trials: Sequence[Row]) -> dict[str, Any]:
    from app.reports.studies.table import study_table

    facts, development, test = _read(backend, row, trials)
    return study_table(facts, development, test)


def table_as(backend: Backend, study_id: str, form: str) -> str:
    """Return the table as `csv`, `markdown` or `latex`."""
    from app.reports.studies import formats

    write = {"csv": formats.as_csv, "markdown": formats.as_markdown, "latex": formats.as_latex}
    return write[form](table(backend, study_id))


def page(backend: Backend, study_id: str) -> tuple[str, str]:
    """Return the study's page and its Content-Security-Policy."""
    from app.reports.layout import content_security_policy
    from app.reports.studies.page import study_page

    row = find(backend, study_id)
    trials = studies.trials(backend.engine, study_id)
    winner, recipe = (row["outcome"] or {}).get("winner"), None
    if winner is not None:
        chosen = trials[winner]
        recipe = study_of(row).spaces[chosen["candidate"]].request(chosen["point"])
    document = _table(backend, row, trials)
    return study_page(document, versions()["version"], recipe), content_security_policy()


def _read(
    backend: Backend, row: Row, trials: Sequence[Row]
) -> tuple[StudyFacts, list[StudySystem], list[StudySystem]]:
    """Return what the table shows: facts, systems on the development sets, and on the test sets."""
    from app.reports.studies.systems import StudyFacts, StudySystem

    study = study_of(row)
    outcome = row["outcome"] or {}
    ends = [trial["finished_at"] for trial in trials if trial["finished_at"]]
    used = round(studies.seconds_used(trials, max(ends, default=0.0)), 1)
    facts = StudyFacts(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        phase=row["phase"] if row["status"] not in FINAL else None,
        objectives=tuple(measure.name for measure in study.measures),
        constraints=tuple(one.model_dump(mode="json") for one, _ in study.limits),
        outcome={
            "winner": outcome.get("winner"),
            "shipped": outcome.get("shipped"),
            "reason": outcome.get("reason"),
            "kept": outcome.get("kept", []),
            "front": outcome.get("front", []),
        },
        budget={
            "trials": {"used": len(trials), "limit": row["trials"]},
            "seconds": {"used": used, "limit": row["seconds"]},
        },
        importance=outcome.get("importance", {}),
    )
    decoded = _joined(studies.results(backend.engine, row["id"]))
    development = [
        StudySystem(name, kind, name, decoded[name])
        for name, kind in _kinds(study).items()
        if name in decoded
    ]
    development += [
        _trial(study, trial, decoded.get(f"#{trial['number']}", ()), row["status"])
        for trial in trials
    ]
    return facts, development, _tested(backend, study, trials, outcome)


def _kinds(study: Study) -> dict[str, Any]:
    """Return what each system is that trials are compared with, by name."""
    kinds: dict[str, Any] = {"base": "base"} if study.request.base else {}
    kinds |= dict.fromkeys(study.experts, "expert")
    return kinds | dict.fromkeys((one.name for one in study.request.references), "reference")


def _trial(
    study: Study, trial: Row, results: Sequence[EvaluatedDataset], status: str
) -> StudySystem:
    from app.reports.studies.systems import StudySystem

    space, scores = study.spaces[trial["candidate"]], trial["scores"]
    objectives = scores.get("objectives")
    left = is_left(trial, status)
    return StudySystem(
        key=f"#{trial['number']}",
        kind="trial",
        label=space.label(trial["point"]),
        results=tuple(results),
        method=space.candidate.method,
        values=trial["point"],
        number=trial["number"],
        merge_id=trial["merge_id"],
        status="stopped" if left else trial["status"],
        fraction=scores.get("fraction", 0.0),
        reason="the study ended" if left else trial["reason"],
        feasible=scores.get("feasible"),
        objectives=None if objectives is None else tuple(objectives),
    )


def _tested(
    backend: Backend, study: Study, trials: Sequence[Row], outcome: Mapping[str, Any]
) -> list[StudySystem]:
    """Return the systems on the test sets, from the kept merges' evaluations, the winner's first.

    Base, experts and references are in all of them.
    """
    from app.reports.studies.systems import StudySystem

    kept = [one for one in outcome.get("kept", []) if one.get("evaluation_id")]
    kept.sort(key=lambda one: one["trial"] != outcome.get("winner"))
    known: dict[str, list[EvaluatedDataset]] = {}
    merged: dict[str, list[EvaluatedDataset]] = {}
    for one in kept:
        rows = evaluations.results(backend.engine, one["merge_id"], one["evaluation_id"])
        systems: dict[str, list[EvaluatedDataset]] = {}
        for chosen in choose(rows):
            systems.setdefault(str(chosen["system"]), []).append(unpack(chosen))
        merged[one["merge_id"]] = systems.pop(MERGE, [])
        for name, results in systems.items():
            known.setdefault(name, results)
    found = [
        StudySystem(name, kind, name, tuple(known[name]))
        for name, kind in _kinds(study).items()
        if name in known
    ]
    numbers = {one["merge_id"]: int(one["trial"]) for one in kept}
    by_number = {int(trial["number"]): trial for trial in trials}
    found += [
        _trial(study, by_number[numbers[merge_id]], results, "succeeded")
        for merge_id, results in merged.items()
        if results
    ]
    return found


def _joined(rows: Iterable[Row]) -> dict[str, tuple[EvaluatedDataset, ...]]:
    """Return each system's results by set, the rungs' utterances put together."""
    found: dict[str, dict[str, EvaluatedDataset]] = {}
    for row in rows:
        for one in studies.unpack(row):
            sets = found.setdefault(row["system"], {})
            sets[one.name] = _with(sets[one.name], one) if one.name in sets else one
    return {name: tuple(sets.values()) for name, sets in found.items()}


def _with(first: EvaluatedDataset, later: EvaluatedDataset) -> EvaluatedDataset:
    """Return two rungs' results on a set as one."""
    both = first.result, later.result
    result = first.result.model_copy(
        update={
            "utterances": tuple(
                sorted((u for one in both for u in one.utterances), key=lambda u: u.index)
            ),
            "skipped": tuple(one for result in both for one in result.skipped),
            "audio_warnings": tuple(one for result in both for one in result.audio_warnings),
        }
    )
    return first.model_copy(update={"result": result})
