"""Studies: submit, plan, list, get, cancel, extend, delete; their trials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import RowMapping

from app.contract.errors import ConflictError, InvalidRequestError, NotFoundError, Problem
from app.contract.identifiers import STUDY, is_id
from app.contract.problems import problems_of
from app.contract.spaces import Space, Study, check_study
from app.contract.states import FINAL, OPEN
from app.contract.studies import MOST_TRIALS, parse_study
from app.services.backend import Backend
from app.services.checks import check_study_sources, named_merges, refuse_deleted
from app.services.idempotency import Caller, claim
from app.services.pages import decode_offset_token, decode_time_token, encode_token
from app.services.presentation import maybe_timestamp, progress_resource, timestamp
from app.services.resources import (
    BudgetResource,
    OutcomeResource,
    StudyPage,
    StudyPlanResource,
    StudyResource,
    TrialPage,
    TrialResource,
)
from app.storage import leases, merges, studies
from app.storage.database import clock, writing
from app.storage.leases import JobKind


class Extension(BaseModel):
    """A larger budget: the new totals."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"trials": 80}]},
    )

    trials: int | None = Field(None, ge=1, le=MOST_TRIALS, description="Merges to try in all.")
    seconds: float | None = Field(None, gt=0, description="As in the request, in all.")

    @model_validator(mode="after")
    def _something(self) -> Extension:
        if self.trials is None and self.seconds is None:
            raise ValueError("Give trials or seconds: the new totals")
        return self


def parse(backend: Backend, document: Any) -> Study:
    """Return a body's study; InvalidRequestError with all problems."""
    most = backend.settings.max_checkpoints
    return check_study(parse_study(document), max_checkpoints=most)


def parse_extension(document: Any) -> Extension:
    """Return a body's extension; InvalidRequestError with all problems."""
    try:
        return Extension.model_validate(document)
    except ValidationError as error:
        raise InvalidRequestError.of(problems_of(error, Extension)) from None


def submit(backend: Backend, study: Study, caller: Caller) -> tuple[StudyResource, bool]:
    """Check a study's sources and sets and queue it; return it, and whether it is new.

    Raises AfluenteError with all problems.
    """
    content = study.request.model_dump(mode="json")
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    with claim(backend, caller, "POST /studies", fingerprint) as mine:
        if mine.made is not None:
            return get(backend, mine.made), False
        prepared = check_study_sources(backend, study)
        sources = prepared.sources
        base = [sources["base"]] if sources["base"] else []
        every = (*base, *sources["checkpoints"], *sources["references"])
        named = named_merges(str(one["resolved"]) for one in every)
        with writing(backend.engine) as connection:
            refuse_deleted(named, merges.lock_all(connection, named))
            study_id = studies.create(
                connection,
                name=study.request.name,
                request=content,
                sources=sources,
                trials=study.trials,
                seconds=study.request.search.seconds,
                warnings=prepared.warnings,
            )
            mine.complete(connection, study_id)
    backend.announce(JobKind.STUDY, study_id, study_id)
    return get(backend, study_id), True


def plan(backend: Backend, study: Study) -> StudyPlanResource:
    """Check a study and return what it would do, without storing anything."""
    prepared = check_study_sources(backend, study)
    utterances = sum(prepared.utterances.values())
    stated = list(prepared.audio_seconds.values())
    seconds = None if None in stated else round(sum(filter(None, stated)), 1)
    times = study.trials + len(study.systems)
    return StudyPlanResource(
        trials=study.trials,
        systems=list(study.systems) if prepared.utterances else [],
        development={
            "utterances": utterances,
            "audio_seconds": seconds,
            "most_utterances_decoded": times * utterances,
            "most_audio_seconds_decoded": None if seconds is None else round(times * seconds, 1),
        },
        candidates=[
            {
                "method": space.candidate.method,
                "dimensions": {one.name: _described(one.choices, one.range) for one in dimensions},
                "merge": plan.as_document()["totals"],
            }
            for space, plan in zip(study.spaces, prepared.plans, strict=True)
            for dimensions in [space.dimensions]
        ],
        base=prepared.sources["base"],
        checkpoints=prepared.sources["checkpoints"],
        references=prepared.sources["references"],
        warnings=list(prepared.warnings),
    )


def _described(choices: Sequence[Any], wide: BaseModel | None) -> Any:
    return list(choices) if wide is None else wide.model_dump(exclude_none=True)


def get(backend: Backend, study_id: str) -> StudyResource:
    """Return a study; NotFoundError if unknown."""
    row = find(backend, study_id)
    return _present(backend, row, backend.obstacle([row]))


def find(backend: Backend, study_id: str) -> RowMapping:
    """Return a study's row; NotFoundError if unknown."""
    row = studies.get(backend.engine, study_id) if is_id(study_id, STUDY) else None
    if row is None:
        raise _not_found(study_id)
    return row


def list_page(
    backend: Backend,
    *,
    status: str | None = None,
    name: str | None = None,
    page_size: int = 20,
    page_token: str | None = None,
) -> StudyPage:
    """Return a page of studies, newest first."""
    before = decode_time_token(page_token)
    rows = studies.page(backend.engine, status=status, name=name, before=before, size=page_size + 1)
    shown = rows[:page_size]
    last = shown[-1] if len(rows) > page_size else None
    obstacle = backend.obstacle(shown)
    return StudyPage(
        data=[_present(backend, row, obstacle) for row in shown],
        next_page_token=encode_token(last["created_at"], last["id"]) if last else None,
    )


def trial_page(
    backend: Backend, study_id: str, *, page_size: int = 100, page_token: str | None = None
) -> TrialPage:
    """Return a page of a study's trials; NotFoundError if unknown."""
    row = find(backend, study_id)
    start = decode_offset_token(page_token)
    rows = studies.trial_page(backend.engine, study_id, start=start, size=page_size + 1)
    study = study_of(row)
    return TrialPage(
        data=[trial_resource(study, one, row["status"]) for one in rows[:page_size]],
        next_page_token=encode_token(start + page_size) if len(rows) > page_size else None,
    )


def cancel(backend: Backend, study_id: str) -> StudyResource:
    """Cancel a study with the merges it is making; ConflictError if it ended otherwise."""
    find(backend, study_id)
    with writing(backend.engine) as connection:
        status = leases.request_cancel(connection, JobKind.STUDY, study_id)
        row = studies.lock(connection, study_id)  # which merges it makes, now that it makes no more
        if row is not None and status in {"cancelling", "cancelled"}:
            for one in (row["outcome"] or {}).get("kept", ()):
                for kind, job_id in (
                    (JobKind.EVALUATION, one["evaluation_id"]),
                    (JobKind.MERGE, one["merge_id"]),
                ):
                    if job_id is not None:
                        leases.request_cancel(connection, kind, job_id)
    if status is None:
        raise _not_found(study_id)
    if status not in {"cancelling", "cancelled"}:
        raise ConflictError(f"The study {study_id} has {status}; it can no longer be cancelled.")
    backend.wake(study_id)
    return get(backend, study_id)


def extend(backend: Backend, study_id: str, extension: Extension) -> StudyResource:
    """Give a study a larger budget; one that has ended goes on.

    InvalidRequestError for a budget that is not larger; ConflictError if it is being cancelled.
    """
    find(backend, study_id)
    with writing(backend.engine) as connection:
        row = studies.lock(connection, study_id)
        if row is None:
            raise _not_found(study_id)
        if row["status"] == "cancelling":
            raise ConflictError(
                f"The study {study_id} is being cancelled; wait until it has ended."
            )
        trials, seconds = extension.trials or row["trials"], extension.seconds or row["seconds"]
        problems = []
        if extension.trials is not None and trials <= row["trials"]:
            message = f"The study has {row['trials']} trials already; give a larger number."
            problems.append(Problem(message, "trials"))
        if extension.seconds is not None and (row["seconds"] is None or seconds <= row["seconds"]):
            known = "no limit" if row["seconds"] is None else f"{row['seconds']:g} s"
            problems.append(Problem(f"The study has {known}; give a larger number.", "seconds"))
        if problems:
            raise InvalidRequestError.of(problems)
        studies.extend(connection, study_id, trials=trials, seconds=seconds)
    backend.announce(JobKind.STUDY, study_id, study_id)
    return get(backend, study_id)


def delete(backend: Backend, study_id: str) -> None:
    """Delete an ended study with its trials and events; the merges that it made stay.

    NotFoundError if unknown, ConflictError while it is open.
    """
    find(backend, study_id)
    with writing(backend.engine) as connection:
        row = studies.lock(connection, study_id)
        if row is None:
            raise _not_found(study_id)
        if row["status"] in OPEN:
            raise ConflictError(f"The study {study_id} has not ended; cancel it first.")
        studies.remove(connection, study_id)
    backend.wake(study_id)


def study_of(row: Mapping[Any, Any]) -> Study:
    """Return the study of a row, which was checked when it was submitted."""
    return check_study(parse_study(row["request"]), max_checkpoints=10**6)


def is_left(trial: Mapping[Any, Any], study_status: str) -> bool:
    """Return whether the study ended while the trial was running."""
    return trial["status"] == "running" and study_status in FINAL


def trial_resource(study: Study, row: Mapping[Any, Any], study_status: str) -> TrialResource:
    """Return a trial; one that was running when its study ended counts as cancelled."""
    space: Space = study.spaces[row["candidate"]]
    scores = row["scores"]
    return TrialResource(
        number=row["number"],
        status="cancelled" if is_left(row, study_status) else row["status"],
        method=space.candidate.method,
        label=space.label(row["point"]),
        values=row["point"],
        recipe=space.request(row["point"]),
        fraction=scores.get("fraction", 0.0),
        objectives=scores.get("objectives"),
        violations=scores.get("violations"),
        feasible=scores.get("feasible"),
        sets=scores.get("sets", {}),
        reason=row["reason"],
        merge_id=row["merge_id"],
        created_at=timestamp(row["created_at"]),
        finished_at=maybe_timestamp(row["finished_at"]),
    )


def _present(backend: Backend, row: RowMapping, obstacle: str | None) -> StudyResource:
    trials = studies.trials(backend.engine, row["id"])
    study = study_of(row)
    time = clock(backend.engine)
    first = trials[0]["created_at"] if trials else None
    feasible = [one for one in trials if one["status"] == "complete" and one["scores"]]
    feasible = [one for one in feasible if one["scores"]["feasible"]]
    best = min(feasible, key=lambda one: (one["scores"]["objectives"], one["number"]), default=None)
    url = f"/studies/{row['id']}"
    sources = row["sources"]
    return StudyResource(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        phase=row["phase"] if row["status"] in {"running", "cancelling"} else None,
        progress=progress_resource(row, first, time),
        budget=BudgetResource(
            trials=row["trials"],
            trials_used=len(trials),
            seconds=row["seconds"],
            seconds_used=round(studies.seconds_used(trials, row["finished_at"] or time), 1),
        ),
        best=None if best is None else trial_resource(study, best, row["status"]),
        outcome=OutcomeResource.model_validate(row["outcome"] or {}),
        request=row["request"],
        base=sources["base"],
        checkpoints=sources["checkpoints"],
        references=sources["references"],
        warnings=row["warnings"],
        attempt=row["attempt"],
        queued_because=obstacle if row["status"] == "queued" else None,
        created_at=timestamp(row["created_at"]),
        started_at=maybe_timestamp(row["started_at"]),
        finished_at=maybe_timestamp(row["finished_at"]),
        error=row["error"],
        metadata=row["request"].get("metadata") or {},
        links={
            "self": url,
            "cancel": f"{url}/cancel",
            "extend": f"{url}/extend",
            "events": f"{url}/events",
            "trials": f"{url}/trials",
            "table": f"{url}/table",
        },
    )


def _not_found(study_id: str) -> NotFoundError:
    return NotFoundError(f"The study {study_id[:40]} does not exist.")
