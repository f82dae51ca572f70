"""The rows of merges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Text,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
)

from app.contract.identifiers import MERGE, merge_uri, new_id
from app.contract.states import FINAL, OPEN
from app.storage import events
from app.storage.database import MOST_PARAMETERS, now, reading, writing
from app.storage.leases import Lease, write
from app.storage.tables import evaluations, merges, studies


def create(
    connection: Connection,
    *,
    name: str | None,
    request: Mapping[str, Any],
    recipe: Mapping[str, Any],
    sources: Mapping[str, Any],
    warnings: Sequence[Mapping[str, Any]] = (),
    continues: str | None = None,
) -> str:
    """Insert a queued merge within the caller's transaction and return its identifier."""
    merge_id = new_id(MERGE)
    connection.execute(
        insert(merges).values(
            id=merge_id,
            name=name,
            status="queued",
            method=recipe["method"],
            request=dict(request),
            recipe=dict(recipe),
            sources=dict(sources),
            warnings=[dict(warning) for warning in warnings],
            continues=continues,
            created_at=now(),
        )
    )
    events.append(connection, merge_id, "status", {"status": "queued"})
    for warning in warnings:
        events.append(connection, merge_id, "warning", warning)
    return merge_id


def get(engine: Engine, merge_id: str) -> RowMapping | None:
    """Return the merge's row, or None."""
    with reading(engine) as connection:
        return fetch(connection, merge_id)


def fetch(connection: Connection, merge_id: str) -> RowMapping | None:
    """Return the merge's row within the caller's transaction, or None."""
    query = select(merges).where(merges.c.id == merge_id)
    return connection.execute(query).mappings().one_or_none()


def lock(connection: Connection, merge_id: str) -> RowMapping | None:
    """Return the merge's row, or None, and lock it until the transaction ends."""
    query = select(merges).where(merges.c.id == merge_id).with_for_update(key_share=True)
    return connection.execute(query).mappings().one_or_none()


def lock_all(connection: Connection, merge_ids: Iterable[str]) -> list[str]:
    """Lock these merges like `lock`; return the identifiers that do not exist."""
    # Sorted, so that two callers cannot deadlock.
    return [one for one in sorted(set(merge_ids)) if lock(connection, one) is None]


def page(
    engine: Engine,
    *,
    status: str | None = None,
    method: str | None = None,
    name: str | None = None,
    before: tuple[float, str] | None = None,
    size: int = 20,
) -> list[RowMapping]:
    """Return up to `size` rows, newest first, older than (created_at, id) in `before`."""
    query = select(merges).order_by(merges.c.created_at.desc(), merges.c.id.desc()).limit(size)
    for column, value in ((merges.c.status, status), (merges.c.method, method)):
        if value is not None:
            query = query.where(column == value)
    if name is not None:
        query = query.where(merges.c.name == name)
    if before is not None:
        query = query.where(tuple_(merges.c.created_at, merges.c.id) < before)
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def usable(connection: Connection, merge_ids: Iterable[str]) -> set[str]:
    """Return those of the merges that exist, and have not failed or been cancelled."""
    query = select(merges.c.id).where(
        merges.c.id.in_(sorted(merge_ids)), merges.c.status.not_in(("failed", "cancelled"))
    )
    return set(connection.execute(query).scalars())


def set_phase(
    engine: Engine, lease: Lease, phase: str, *, unit: str | None = None, total: int | None = None
) -> None:
    """Record the running merge's phase, and reset its progress if it has a unit."""
    values: dict[str, Any] = {"phase": phase, "phase_started_at": now()}
    if unit is not None:
        values |= {"progress_done": 0, "progress_unit": unit, "progress_total": total}
    with writing(engine) as connection:
        write(connection, lease, values)
        events.append(connection, lease.topic, "phase", {"phase": phase})


def set_progress(engine: Engine, lease: Lease, done: int, total: int, unit: str) -> None:
    """Record the phase's progress, and append an event."""
    values = {"progress_done": done, "progress_total": total, "progress_unit": unit}
    with writing(engine) as connection:
        write(connection, lease, values)
        events.append(connection, lease.topic, "progress", progress(done, total, unit))


def set_sources(engine: Engine, lease: Lease, sources: Mapping[str, Any]) -> None:
    """Record the sources with their digests."""
    with writing(engine) as connection:
        write(connection, lease, {"sources": dict(sources)})


def set_warnings(engine: Engine, lease: Lease, warnings: Sequence[Mapping[str, Any]]) -> None:
    """Add the merge's new warnings, and append an event for each."""
    with writing(engine) as connection:
        row = fetch(connection, lease.topic)
        known = list(row["warnings"]) if row else []
        fresh = [dict(warning) for warning in warnings if dict(warning) not in known]
        write(connection, lease, {"warnings": known + fresh})
        for warning in fresh:
            events.append(connection, lease.topic, "warning", warning)


def counts(engine: Engine) -> dict[str, int]:
    """Return the number of merges by status."""
    query = select(merges.c.status, func.count()).group_by(merges.c.status)
    with reading(engine) as connection:
        return {str(status): int(count) for status, count in connection.execute(query)}


def has_open_work(connection: Connection, merge_id: str) -> bool:
    """Return whether the merge or one of its evaluations has not ended."""
    own = select(merges.c.id).where(merges.c.id == merge_id, merges.c.status.in_(sorted(OPEN)))
    theirs = select(evaluations.c.id).where(
        evaluations.c.merge_id == merge_id, evaluations.c.status.in_(sorted(OPEN))
    )
    return any(connection.execute(query.limit(1)).first() for query in (own, theirs))


def has_open_readers(connection: Connection, merge_id: str) -> bool:
    """Return whether an unfinished merge, evaluation or study uses this merge as a source."""

    def names_it(column: ColumnElement[Any]) -> ColumnElement[bool]:
        return cast(column, Text).contains(merge_uri(merge_id))

    theirs = select(merges.c.id).where(
        merges.c.status.in_(sorted(OPEN)),
        # The requested evaluation is created when the merge is published.
        or_(names_it(merges.c.sources), names_it(merges.c.request["evaluation"])),
    )
    measured = (
        select(evaluations.c.id)
        .join(merges, merges.c.id == evaluations.c.merge_id)
        .where(
            evaluations.c.status.in_(sorted(OPEN)),
            or_(names_it(evaluations.c.spec), names_it(merges.c.sources)),
        )
    )
    searched = select(studies.c.id).where(
        studies.c.status.in_(sorted(OPEN)),
        or_(names_it(studies.c.sources), names_it(studies.c.outcome)),
    )
    queries = theirs, measured, searched
    return any(connection.execute(query.limit(1)).first() for query in queries)


def remove(connection: Connection, merge_id: str) -> None:
    """Delete the merge with its events, evaluations and results."""
    connection.execute(delete(merges).where(merges.c.id == merge_id))
    events.remove(connection, merge_id)


def disposable(
    engine: Engine, merge_ids: Collection[str], *, failed_within_seconds: float
) -> tuple[set[str], set[str]]:
    """Return which of these merges have ended, and the artifact folders that they published.

    Merges that failed within this time do not count: a retry may adopt their tensors.
    """
    recent = (merges.c.status == "failed") & (merges.c.finished_at > now() - failed_within_seconds)
    query = select(merges.c.id, merges.c.artifact_folder).where(
        merges.c.status.in_(sorted(FINAL)), ~recent
    )
    over: set[str] = set()
    folders: set[str] = set()
    known = sorted(merge_ids)
    with reading(engine) as connection:
        for start in range(0, len(known), MOST_PARAMETERS):
            part = merges.c.id.in_(known[start : start + MOST_PARAMETERS])
            for merge_id, folder in connection.execute(query.where(part)):
                over.add(merge_id)
                folders |= {folder} if folder else set()
    return over, folders


def progress(done: int, total: int | None, unit: str | None) -> dict[str, Any]:
    """Return the progress as events and resources show it."""
    fraction = round(done / total, 4) if total else 0.0
    return {"done": done, "total": total, "unit": unit, "fraction": fraction}
