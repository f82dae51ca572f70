"""The rows of evaluations and of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, delete, func, insert, select, tuple_

from app.contract.identifiers import EVALUATION, new_id
from app.storage import events
from app.storage.database import now, reading
from app.storage.merges import lock
from app.storage.tables import evaluation_results, evaluations

# Minimum time between two evaluations of a merge, which are ordered by it.
_LEAST_SECONDS = 0.001


def create(
    connection: Connection,
    merge_id: str,
    spec: Mapping[str, Any],
    warnings: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Insert a queued evaluation of a merge and return its identifier."""
    evaluation_id = new_id(EVALUATION)
    lock(connection, merge_id)  # before the insert, whose foreign key takes a weaker lock
    # The newest evaluation must have the latest time, even if the clock was set back.
    newest = func.max(evaluations.c.created_at)
    last, moment = connection.execute(
        select(newest, now()).where(evaluations.c.merge_id == merge_id)
    ).one()
    connection.execute(
        insert(evaluations).values(
            id=evaluation_id,
            merge_id=merge_id,
            status="queued",
            spec=dict(spec),
            warnings=[dict(warning) for warning in warnings],
            created_at=max(moment, last + _LEAST_SECONDS) if last else moment,
        )
    )
    data = {"id": evaluation_id, "status": "queued"}
    events.append(connection, merge_id, "evaluation", data)
    return evaluation_id


def get(engine: Engine, evaluation_id: str) -> RowMapping | None:
    """Return the evaluation's row, or None."""
    query = select(evaluations).where(evaluations.c.id == evaluation_id)
    with reading(engine) as connection:
        return connection.execute(query).mappings().one_or_none()


def of_merge(engine: Engine, merge_id: str) -> list[RowMapping]:
    """Return the merge's evaluations, newest first."""
    query = (
        select(evaluations)
        .where(evaluations.c.merge_id == merge_id)
        .order_by(evaluations.c.created_at.desc(), evaluations.c.id.desc())
    )
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def page(
    engine: Engine, merge_id: str, *, before: tuple[float, str] | None, size: int
) -> list[RowMapping]:
    """Return up to `size` evaluations of a merge, newest first, created before `before`."""
    query = (
        select(evaluations)
        .where(evaluations.c.merge_id == merge_id)
        .order_by(evaluations.c.created_at.desc(), evaluations.c.id.desc())
        .limit(size)
    )
    if before is not None:
        query = query.where(tuple_(evaluations.c.created_at, evaluations.c.id) < before)
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def latest(engine: Engine, merge_ids: Sequence[str]) -> dict[str, RowMapping]:
    """Return the newest evaluation of each merge that has one."""
    age = func.row_number().over(
        partition_by=evaluations.c.merge_id,
        order_by=(evaluations.c.created_at.desc(), evaluations.c.id.desc()),
    )
    # Rank identifiers only: a merge may have thousands of evaluations with long specs.
    ranked = (
        select(evaluations.c.id, age.label("age"))
        .where(evaluations.c.merge_id.in_(list(merge_ids)))
        .subquery()
    )
    query = select(evaluations).join(ranked, ranked.c.id == evaluations.c.id)
    query = query.where(ranked.c.age == 1)
    with reading(engine) as connection:
        return {str(row["merge_id"]): row for row in connection.execute(query).mappings()}


def save_result(
    connection: Connection,
    evaluation_id: str,
    *,
    system: str,
    dataset: str,
    position: int,
    result: Mapping[str, Any],
    utterances: Sequence[Mapping[str, Any]],
) -> None:
    """Store or replace a system's result on a dataset, in the caller's transaction."""
    table = evaluation_results
    connection.execute(
        delete(table).where(
            table.c.evaluation_id == evaluation_id,
            table.c.system == system,
            table.c.dataset == dataset,
        )
    )
    connection.execute(
        insert(table).values(
            evaluation_id=evaluation_id,
            system=system,
            dataset=dataset,
            position=position,
            result=dict(result),
            utterances=[dict(item) for item in utterances],
            created_at=now(),
        )
    )


def results(engine: Engine, merge_id: str, evaluation_id: str | None = None) -> list[RowMapping]:
    """Return a merge's results with the status and spec of their evaluation.

    Newest evaluation first; within an evaluation, ordered by position.
    """
    table = evaluation_results
    query = (
        select(table, evaluations.c.status, evaluations.c.spec)
        .join(evaluations, evaluations.c.id == table.c.evaluation_id)
        .where(evaluations.c.merge_id == merge_id)
        .order_by(evaluations.c.created_at.desc(), evaluations.c.id.desc(), table.c.position)
    )
    if evaluation_id is not None:
        query = query.where(evaluations.c.id == evaluation_id)
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def result(engine: Engine, evaluation_id: str, system: str, dataset: str) -> RowMapping | None:
    """Return a system's result on a dataset, or None."""
    table = evaluation_results
    query = select(table).where(
        table.c.evaluation_id == evaluation_id,
        table.c.system == system,
        table.c.dataset == dataset,
    )
    with reading(engine) as connection:
        return connection.execute(query).mappings().one_or_none()


def outlines(engine: Engine, digests: Sequence[str], *, most: int) -> list[RowMapping]:
    """Return up to `most` results of merges on these manifests, without their utterances.

    Newest evaluation first; each with its `merge_id`.
    """
    table = evaluation_results
    query = (
        select(table.c.evaluation_id, table.c.dataset, table.c.result, evaluations.c.merge_id)
        .join(evaluations, evaluations.c.id == table.c.evaluation_id)
        .where(
            table.c.system == "merge",
            table.c.result[("result", "manifest_sha256")].as_string().in_(list(digests)),
        )
        .order_by(evaluations.c.created_at.desc(), evaluations.c.id.desc(), table.c.position)
        .limit(most)
    )
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())
