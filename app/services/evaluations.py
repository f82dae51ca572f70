"""Evaluations of finished merges: submit, list, get, cancel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy import RowMapping

from app.contract.errors import ConflictError, InvalidRequestError, NotFoundError
from app.contract.evaluation import EvaluationSpec
from app.contract.identifiers import EVALUATION, is_id
from app.contract.problems import problems_of
from app.services.backend import Backend
from app.services.checks import check_evaluation, named_merges, refuse_deleted
from app.services.idempotency import Caller, claim
from app.services.merges import find as find_merge
from app.services.pages import decode_time_token, encode_token
from app.services.presentation import evaluation_resource
from app.services.resources import EvaluationPage, EvaluationResource
from app.storage import evaluations, leases, merges
from app.storage.database import clock, writing
from app.storage.leases import JobKind


def submit(
    backend: Backend, merge_id: str, spec: EvaluationSpec, caller: Caller
) -> tuple[EvaluationResource, bool]:
    """Check and queue an evaluation; return it, and whether it is new.

    ConflictError unless the merge has succeeded; AfluenteError with all problems.
    """
    merge = find_merge(backend, merge_id)
    content = spec.model_dump(mode="json")
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    endpoint = f"POST /merges/{merge_id}/evaluations"
    with claim(backend, caller, endpoint, fingerprint) as mine:
        if mine.made is not None:
            return get(backend, merge_id, mine.made), False
        if merge["status"] != "succeeded":
            raise ConflictError(
                f"The merge {merge_id} is {merge['status']}; only a succeeded merge can be "
                "evaluated."
            )
        warnings = check_evaluation(backend, spec, dict(merge))
        with writing(backend.engine) as connection:
            named = named_merges(_compared(spec, merge["sources"]))
            gone = merges.lock_all(connection, [merge_id, *named])
            if merge_id in gone:
                raise NotFoundError(f"The merge {merge_id} does not exist.")
            refuse_deleted(named, gone)
            evaluation_id = evaluations.create(connection, merge_id, content, warnings)
            mine.complete(connection, evaluation_id)
    backend.announce(JobKind.EVALUATION, evaluation_id, merge_id)
    return get(backend, merge_id, evaluation_id), True


def list_page(
    backend: Backend, merge_id: str, *, page_size: int = 20, page_token: str | None = None
) -> EvaluationPage:
    """Return a page of a merge's evaluations, newest first; NotFoundError if unknown."""
    before = decode_time_token(page_token)
    find_merge(backend, merge_id)
    rows = evaluations.page(backend.engine, merge_id, before=before, size=page_size + 1)
    shown = rows[:page_size]
    last = shown[-1] if len(rows) > page_size else None
    time = clock(backend.engine)
    obstacle = backend.obstacle(shown)
    return EvaluationPage(
        data=[evaluation_resource(row, time, obstacle) for row in shown],
        next_page_token=encode_token(last["created_at"], last["id"]) if last else None,
    )


def get(backend: Backend, merge_id: str, evaluation_id: str) -> EvaluationResource:
    """Return an evaluation of this merge; NotFoundError if unknown."""
    row = find(backend, merge_id, evaluation_id)
    return evaluation_resource(row, clock(backend.engine), backend.obstacle([row]))


def find(backend: Backend, merge_id: str, evaluation_id: str) -> RowMapping:
    """Return the row of an evaluation of this merge; NotFoundError if unknown."""
    find_merge(backend, merge_id)
    known = is_id(evaluation_id, EVALUATION)
    row = evaluations.get(backend.engine, evaluation_id) if known else None
    if row is None or row["merge_id"] != merge_id:
        raise NotFoundError(f"The merge {merge_id} has no evaluation {evaluation_id[:40]}.")
    return row


def cancel(backend: Backend, merge_id: str, evaluation_id: str) -> EvaluationResource:
    """Cancel an evaluation, if it is not cancelled already; ConflictError if it ended otherwise."""
    find(backend, merge_id, evaluation_id)
    with writing(backend.engine) as connection:
        status = leases.request_cancel(connection, JobKind.EVALUATION, evaluation_id)
    if status not in {"cancelling", "cancelled"}:
        raise ConflictError(
            f"The evaluation {evaluation_id} has ended ({status}); it can no longer be cancelled."
        )
    backend.wake(merge_id)
    return get(backend, merge_id, evaluation_id)


def _compared(spec: EvaluationSpec, sources: Mapping[str, Any]) -> list[str]:
    """Return the URIs of the systems that a merge with these sources is compared with."""
    found = [*spec.compare_with, *(reference.uri for reference in spec.references)]
    if "base" in found and sources["base"]:
        found.append(sources["base"]["resolved"])
    if "checkpoints" in found:
        found += [source["resolved"] for source in sources["checkpoints"]]
    return found


def parse(document: Any) -> EvaluationSpec:
    """Return a body's evaluation; InvalidRequestError with all problems."""
    try:
        return EvaluationSpec.model_validate(document)
    except ValidationError as error:
        raise InvalidRequestError.of(problems_of(error, EvaluationSpec)) from None
