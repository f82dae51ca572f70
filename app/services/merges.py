"""Merges: submit, plan, list, get, cancel, retry, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, RowMapping

from app.contract.errors import ConflictError, NotFoundError
from app.contract.identifiers import MERGE, is_id, merge_uri
from app.contract.recipe import ParsedRequest, Recipe, parse_request
from app.contract.requests import MergeRequest
from app.services.backend import Backend
from app.services.checks import check_sources, named_merges, refuse_deleted
from app.services.idempotency import Caller, claim
from app.services.pages import decode_time_token, encode_token
from app.services.presentation import merge_resource
from app.services.resources import MergePage, MergeResource, PlanResource
from app.storage import evaluations, leases, merges
from app.storage.database import clock, writing
from app.storage.leases import JobKind

if TYPE_CHECKING:
    from app.services.preparation import Prepared


def parse(backend: Backend, document: Any) -> ParsedRequest:
    """Return a body's request and recipe; InvalidRequestError with all problems."""
    return parse_request(document, max_checkpoints=backend.settings.max_checkpoints)


def submit(backend: Backend, parsed: ParsedRequest, caller: Caller) -> tuple[MergeResource, bool]:
    """Check a request's sources and queue its merge; return it, and whether it is new.

    It is not new if the caller's Idempotency-Key created it before. Raises AfluenteError with all
    problems.
    """
    with claim(backend, caller, "POST /merges", parsed.fingerprint) as mine:
        if mine.made is not None:
            return get(backend, mine.made), False
        prepared = check_sources(backend, parsed.recipe, parsed.request.evaluation)
        with writing(backend.engine) as connection:
            _hold_sources(connection, prepared, parsed.request)
            merge_id = merges.create(
                connection,
                name=parsed.request.name,
                request=parsed.request.model_dump(mode="json"),
                recipe=parsed.recipe.model_dump(mode="json"),
                sources=prepared.sources(),
                warnings=prepared.warnings,
            )
            mine.complete(connection, merge_id)
    backend.announce(JobKind.MERGE, merge_id, merge_id)
    return get(backend, merge_id), True


def plan(backend: Backend, parsed: ParsedRequest) -> PlanResource:
    """Check a request and return its plan, without storing anything."""
    prepared = check_sources(backend, parsed.recipe, parsed.request.evaluation)
    return PlanResource(
        method=parsed.recipe.method,
        parameters=parsed.recipe.parameters,
        warnings=list(prepared.warnings),
        plan=prepared.plan.as_document(),
        **prepared.sources(),
    )


def get(backend: Backend, merge_id: str) -> MergeResource:
    """Return a merge; NotFoundError if unknown."""
    row = find(backend, merge_id)
    return _present(backend, [row])[0]


def find(backend: Backend, merge_id: str) -> RowMapping:
    """Return a merge's row; NotFoundError if unknown."""
    row = merges.get(backend.engine, merge_id) if is_id(merge_id, MERGE) else None
    if row is None:
        raise _not_found(merge_id)
    return row


def list_page(
    backend: Backend,
    *,
    status: str | None = None,
    method: str | None = None,
    name: str | None = None,
    page_size: int = 20,
    page_token: str | None = None,
) -> MergePage:
    """Return a page of merges, newest first; page tokens stay valid when merges are added."""
    rows = merges.page(
        backend.engine,
        status=status,
        method=method,
        name=name,
        before=decode_time_token(page_token),
        size=page_size + 1,
    )
    shown = rows[:page_size]
    last = shown[-1] if len(rows) > page_size else None
    token = encode_token(last["created_at"], last["id"]) if last else None
    return MergePage(data=_present(backend, shown), next_page_token=token)


def cancel(backend: Backend, merge_id: str) -> MergeResource:
    """Cancel a merge, if it is not cancelled already; ConflictError if it ended otherwise."""
    find(backend, merge_id)
    with writing(backend.engine) as connection:
        status = leases.request_cancel(connection, JobKind.MERGE, merge_id)
    if status is None:
        raise _not_found(merge_id)
    if status not in {"cancelling", "cancelled"}:
        raise ConflictError(f"The merge {merge_id} has {status}; it can no longer be cancelled.")
    backend.wake(merge_id)
    return get(backend, merge_id)


def retry(backend: Backend, merge_id: str, caller: Caller) -> tuple[MergeResource, bool]:
    """Queue a new merge with a failed one's recipe; return it, and whether it is new.

    It adopts the tensors that the failed merge finished. ConflictError if that merge has not
    failed; AfluenteError if its sources can no longer be used.
    """
    row = find(backend, merge_id)
    with claim(backend, caller, f"POST /merges/{merge_id}/retry", merge_id) as mine:
        if mine.made is not None:
            return get(backend, mine.made), False
        if row["status"] != "failed":
            raise ConflictError(
                f"The merge {merge_id} is {row['status']}; only a failed merge can be retried."
            )
        recipe = Recipe.model_validate(row["recipe"])
        request = MergeRequest.model_validate(row["request"])
        # Finished tensors can be adopted only if the sources have the same revisions.
        pinned = _pinned(row["sources"])
        prepared = check_sources(backend, recipe, request.evaluation, pinned=pinned)
        with writing(backend.engine) as connection:
            _hold_sources(connection, prepared, request)
            new_id = merges.create(
                connection,
                name=row["name"],
                request=row["request"],
                recipe=row["recipe"],
                sources=prepared.sources(),
                warnings=prepared.warnings,
                continues=merge_id,
            )
            mine.complete(connection, new_id)
    backend.announce(JobKind.MERGE, new_id, new_id)
    return get(backend, new_id), True


def sources_of(backend: Backend, merge_id: str) -> list[str]:
    """Return the pinned URIs of a merge's sources, and its datasets; NotFoundError if unknown."""
    row = find(backend, merge_id)
    parts = (row["request"].get(name) or {} for name in ("calibration", "evaluation"))
    datasets = [one["uri"] for part in parts for one in part.get("datasets", ())]
    return [*_pinned(row["sources"]), *datasets]


def delete(backend: Backend, merge_id: str) -> None:
    """Delete a merge with its events, evaluations and artifact; NotFoundError if unknown.

    ConflictError while it, one of its evaluations, or any job that reads its artifact is open.
    """
    find(backend, merge_id)
    with writing(backend.engine) as connection:
        row = merges.lock(connection, merge_id)
        if row is None:
            raise _not_found(merge_id)
        if merges.has_open_work(connection, merge_id):
            raise ConflictError(
                f"The merge {merge_id} or one of its evaluations has not ended; cancel it first."
            )
        if merges.has_open_readers(connection, merge_id):
            raise ConflictError(
                f"An unfinished merge or evaluation reads {merge_uri(merge_id)}; wait for it, or "
                "cancel it first."
            )
        merges.remove(connection, merge_id)
    # The files go last, so that a listed merge always has them. After a crash here, the sweeper
    # removes them, since no row refers to them.
    if row["artifact_folder"]:
        backend.store.remove_published(row["artifact_folder"])
    backend.store.remove_scratch(merge_id)
    backend.wake(merge_id)


def _hold_sources(connection: Connection, prepared: Prepared, request: MergeRequest) -> None:
    """Lock the merges that a request reads until its row, which protects them, is committed."""
    compared = request.evaluation.compare_with if request.evaluation else ()
    named = named_merges([*_pinned(prepared.sources()), *compared])
    refuse_deleted(named, merges.lock_all(connection, named))


def _pinned(sources: Mapping[str, Any]) -> list[str]:
    base = [sources["base"]] if sources["base"] else []
    return [str(source["resolved"]) for source in (*base, *sources["checkpoints"])]


def _not_found(merge_id: str) -> NotFoundError:
    return NotFoundError(f"The merge {merge_id[:40]} does not exist.")


def _present(backend: Backend, rows: list[RowMapping]) -> list[MergeResource]:
    newest = evaluations.latest(backend.engine, [row["id"] for row in rows]) if rows else {}
    running = any(row["status"] == "running" for row in rows)
    time = clock(backend.engine) if running else None
    obstacle = backend.obstacle(rows)
    return [merge_resource(row, newest.get(row["id"]), time, obstacle) for row in rows]
