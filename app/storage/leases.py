"""Leases on jobs, with a fencing number.

A job (merge, evaluation, study, or part of one) belongs to the attempt that took its row last.
Taking it raises `fence`, and every later write of that attempt has `where fence = ...`, so an
attempt that lost its lease cannot change anything.

A lease has expired if `lease_expires_at` is null, or a sweeper has not seen it change for the
lease's length (`change_tracker.py`). The time itself is only informative, since clocks jump.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    delete,
    func,
    or_,
    select,
    update,
)

from app.contract.states import FINAL, OPEN, WANTED, origins
from app.storage import events
from app.storage.database import MOST_PARAMETERS, now, reading, writing
from app.storage.tables import (
    evaluation_parts,
    evaluations,
    merges,
    studies,
    study_pieces,
    workers,
)


class JobKind(StrEnum):
    """The kinds of job.

    A PART belongs to an evaluation and a PIECE to a study; they end with it.
    """

    MERGE = "merge"
    EVALUATION = "evaluation"
    PART = "part"
    STUDY = "study"
    PIECE = "piece"

    @property
    def table(self) -> Table:
        """The table that holds the jobs of this kind."""
        return _TABLES[self]

    @property
    def parts(self) -> JobKind | None:
        """The kind of this kind's parts, if it has any."""
        return _PARTS.get(self)

    @property
    def whole(self) -> JobKind | None:
        """The kind that this kind is a part of, if it is one."""
        return next((whole for whole, part in _PARTS.items() if part is self), None)

    @property
    def whole_id(self) -> Column[Any]:
        """The column of a part with the identifier of the job it belongs to."""
        return self.table.c["evaluation_id" if self is JobKind.PART else "study_id"]


_TABLES = {
    JobKind.MERGE: merges,
    JobKind.EVALUATION: evaluations,
    JobKind.PART: evaluation_parts,
    JobKind.STUDY: studies,
    JobKind.PIECE: study_pieces,
}
_PARTS = {JobKind.EVALUATION: JobKind.PART, JobKind.STUDY: JobKind.PIECE}
# The values of a job that was given back.
UNOWNED: Mapping[str, Any] = {
    "status": "queued",
    "lease_owner": None,
    "lease_expires_at": None,
    "sent_at": None,
}
_UNDER_WAY = ("running", "cancelling")
# Kinds with messages and events. Parts are claimed through the job that they belong to.
_ANNOUNCED = (JobKind.MERGE, JobKind.EVALUATION, JobKind.STUDY)


class LeaseLostError(Exception):
    """The attempt no longer owns its job, and must stop without writing anything."""


class Hold(NamedTuple):
    """A lease as its job's row has it; every renewal changes it."""

    owner: str
    fence: int
    expires_at: float | None


@dataclass(frozen=True)
class Lease:
    """The right to work on a job, until another attempt has a higher fence.

    `topic` is the merge or study whose events tell about the job.
    """

    kind: JobKind
    id: str
    topic: str
    owner: str
    fence: int
    attempt: int

    @property
    def _mine(self) -> Any:
        return and_(self.kind.table.c.id == self.id, self.kind.table.c.fence == self.fence)


def take(engine: Engine, kind: JobKind, job_id: str, owner: str, seconds: float) -> Lease | None:
    """Start a queued job and return its lease; None if it is not queued."""
    with writing(engine) as connection:
        return take_within(connection, kind, job_id, owner, seconds)


def take_within(
    connection: Connection, kind: JobKind, job_id: str, owner: str, seconds: float
) -> Lease | None:
    """Like `take`, in the caller's transaction."""
    table = kind.table
    row = connection.execute(
        update(table)
        .where(table.c.id == job_id, table.c.status == "queued")
        .values(
            status="running",
            fence=table.c.fence + 1,
            attempt=table.c.attempt + 1,
            lease_owner=owner,
            lease_expires_at=now() + seconds,
            started_at=_first(table),
            killed=False,
        )
        .returning(*_identity(table), table.c.fence, table.c.attempt)
    ).one_or_none()
    if row is None:
        return None
    _announce(connection, kind, job_id, row.topic, "running", attempt=row.attempt)
    return Lease(kind, job_id, row.topic, owner, row.fence, row.attempt)


def renew(engine: Engine, lease: Lease, seconds: float) -> None:
    """Extend the lease; LeaseLostError if another attempt has the job."""
    with writing(engine) as connection:
        write(connection, lease, {"lease_expires_at": now() + seconds})


def write(connection: Connection, lease: Lease, values: Mapping[str, Any]) -> None:
    """Update the job's row in the caller's transaction; LeaseLostError if the lease is lost."""
    table = lease.kind.table
    done = connection.execute(
        update(table).where(lease._mine, table.c.status.in_(_UNDER_WAY)).values(**values)
    )
    if done.rowcount != 1:
        raise LeaseLostError(lease.id)


def check(connection: Connection, lease: Lease) -> None:
    """Lock the job's row until the transaction ends; LeaseLostError if the lease is lost."""
    table = lease.kind.table
    query = select(table.c.id).where(lease._mine, table.c.status.in_(_UNDER_WAY))
    if connection.execute(query.with_for_update(key_share=True)).one_or_none() is None:
        raise LeaseLostError(lease.id)


def status_of(engine: Engine, lease: Lease, worker_id: str | None = None) -> str:
    """Return `running`, `cancelling`, or `stopping` if the worker was told to stop.

    LeaseLostError if another attempt has the job, the job has ended or been deleted, or it is a
    part of one that is no longer running.
    """
    table = lease.kind.table
    stopping = select(workers.c.stopping).where(workers.c.id == worker_id).scalar_subquery()
    query = select(table.c.status, stopping.label("stopping")).where(lease._mine)
    if whole := lease.kind.whole:
        wanted = whole.table.c.status.in_(WANTED)
        query = query.join(whole.table, whole.table.c.id == lease.kind.whole_id).where(wanted)
    with reading(engine) as connection:
        row = connection.execute(query).one_or_none()
    if row is None or row.status not in _UNDER_WAY:
        raise LeaseLostError(lease.id)
    if row.status == "running" and row.stopping:
        return "stopping"
    return str(row.status)


def finish(
    connection: Connection, lease: Lease, status: str, values: Mapping[str, Any] | None = None
) -> None:
    """End the job in the caller's transaction; LeaseLostError if the lease is lost."""
    table = lease.kind.table
    done = connection.execute(
        update(table)
        .where(lease._mine, table.c.status.in_(sorted(origins(status))))
        .values(
            status=status,
            finished_at=now(),
            lease_owner=None,
            lease_expires_at=None,
            **(values or {}),
        )
    )
    if done.rowcount != 1:
        raise LeaseLostError(lease.id)
    error = (values or {}).get("error")
    _announce(connection, lease.kind, lease.id, lease.topic, status, error=error)
    _close(connection, lease.kind, lease.id, lease.topic)


def give_back(engine: Engine, lease: Lease) -> None:
    """Return a running job to the queue, because its worker was told to stop.

    Its parts that the same process holds are returned too.
    """
    table = lease.kind.table
    with writing(engine) as connection:
        done = connection.execute(
            update(table).where(lease._mine, table.c.status == "running").values(**UNOWNED)
        )
        if done.rowcount != 1:
            raise LeaseLostError(lease.id)
        if part := lease.kind.parts:
            column = part.table.c
            connection.execute(
                update(part.table)
                .where(part.whole_id == lease.id, column.lease_owner == lease.owner)
                .where(column.status == "running")
                .values(**UNOWNED)
            )
        _announce(connection, lease.kind, lease.id, lease.topic, "queued")


def held(engine: Engine) -> dict[tuple[JobKind, str], Hold]:
    """Return the leases of all running jobs, except abandoned ones."""
    found: dict[tuple[JobKind, str], Hold] = {}
    with reading(engine) as connection:
        for kind in JobKind:
            table = kind.table
            query = select(table.c.id, *_hold(table)).where(
                table.c.status.in_(_UNDER_WAY), table.c.lease_expires_at.is_not(None)
            )
            for job_id, *hold in connection.execute(query):
                found[kind, job_id] = Hold(*hold)
    return found


def owners(engine: Engine) -> set[str]:
    """Return the owners of all running jobs, except abandoned ones."""
    return {hold.owner for hold in held(engine).values()}


def abandon(engine: Engine, owner_prefix: str, *, killed: bool = False) -> None:
    """Expire the leases of a process that is known to be dead (`killed`: by SIGKILL)."""
    with writing(engine) as connection:
        for kind in JobKind:
            table = kind.table
            connection.execute(
                update(table)
                .where(
                    table.c.lease_owner.startswith(owner_prefix, autoescape=True),
                    table.c.status.in_(_UNDER_WAY),
                )
                .values(lease_expires_at=None, killed=True if killed else table.c.killed)
            )


@dataclass(frozen=True)
class Recovered:
    """A job whose lease expired, and its new status."""

    kind: JobKind
    id: str
    status: str


def recover(
    engine: Engine,
    max_crashes: int,
    lost: Mapping[str, Any],
    killed: Mapping[str, Any],
    run_out: Mapping[tuple[JobKind, str], Hold] | None = None,
) -> list[Recovered]:
    """Requeue jobs whose lease expired; end those that were cancelled or crashed too often.

    `run_out` has the leases that were not renewed in time; those renewed since are kept. Abandoned
    leases are found without it. `lost` and `killed` are the error records for a job whose last
    worker vanished or was killed. Raising the fence shuts out attempts that are only slow. A part
    never fails here: it is left to its job's lead, whose crashes count.
    """
    outcome = []
    with writing(engine) as connection:
        for kind in JobKind:
            table = kind.table
            seen = [job_id for of, job_id in run_out or () if of is kind][:MOST_PARAMETERS]
            rows = connection.execute(
                select(
                    *_identity(table),
                    table.c.status,
                    table.c.crashes,
                    table.c.killed,
                    *_hold(table),
                )
                .where(
                    table.c.status.in_(_UNDER_WAY),
                    or_(table.c.lease_expires_at.is_(None), table.c.id.in_(seen)),
                )
                # Locked against a renewal or an end before the update.
                .with_for_update(skip_locked=True)
            ).all()
            for row in rows:
                hold = Hold(*row[-3:])
                if hold.expires_at is not None and (run_out or {}).get((kind, row.id)) != hold:
                    continue  # renewed, or taken by another
                target = "queued"
                values: dict[str, Any] = {}
                if row.status == "cancelling":
                    target, values = "cancelled", {"finished_at": now()}
                elif kind.whole:
                    values = {"lead_only": True}
                elif row.crashes + 1 >= max_crashes:
                    record = killed if row.killed else lost
                    target, values = "failed", {"finished_at": now(), "error": dict(record)}
                connection.execute(
                    update(table)
                    .where(table.c.id == row.id)
                    .values(
                        status=target,
                        fence=table.c.fence + 1,
                        crashes=table.c.crashes + 1,
                        lease_owner=None,
                        lease_expires_at=None,
                        sent_at=None,
                        **values,
                    )
                )
                _announce(connection, kind, row.id, row.topic, target, error=values.get("error"))
                if target != "queued":
                    _close(connection, kind, row.id, row.topic)
                outcome.append(Recovered(kind, row.id, target))
    return outcome


def waiting(engine: Engine, *, unsent_seconds: float | None) -> list[tuple[JobKind, str]]:
    """Return the queued jobs whose message was never sent, or more than this many seconds ago.

    With None, only those whose message was never sent or was used up.
    """
    found: list[tuple[float, JobKind, str]] = []
    with reading(engine) as connection:
        for kind in _ANNOUNCED:
            table = kind.table
            unsent: ColumnElement[bool] = table.c.sent_at.is_(None)
            if unsent_seconds is not None:
                # An age below 0 means that the clock was set back.
                age = now() - table.c.sent_at
                unsent = or_(unsent, age > unsent_seconds, age < 0.0)
            query = select(table.c.id, table.c.created_at).where(table.c.status == "queued", unsent)
            found += [(row.created_at, kind, row.id) for row in connection.execute(query)]
    return [(kind, job_id) for _, kind, job_id in sorted(found)]


def any_waits(engine: Engine) -> bool:
    """Return whether a job waits for a worker; invitations to help with one do not count."""
    with reading(engine) as connection:
        queued = (
            select(kind.table.c.id).where(kind.table.c.status == "queued").limit(1)
            for kind in _ANNOUNCED
        )
        return any(connection.execute(query).first() is not None for query in queued)


def interrupted(engine: Engine) -> tuple[JobKind, str] | None:
    """Return the oldest queued job that was started before; it precedes the message's job.

    A job that was killed or lost its worker twice waits its turn, since it may kill the next one.
    """
    found: list[tuple[float, JobKind, str]] = []
    with reading(engine) as connection:
        for kind in _ANNOUNCED:
            table = kind.table
            query = select(table.c.id, table.c.started_at).where(
                table.c.status == "queued",
                table.c.attempt > 0,
                table.c.killed.is_(False),
                table.c.crashes < 2,
            )
            found += [(row.started_at, kind, row.id) for row in connection.execute(query)]
    if not found:
        return None
    _, kind, job_id = min(found)
    return kind, job_id


def mark_unsent(engine: Engine, kind: JobKind, job_id: str) -> None:
    """Record that the job's message is used up, so that the sweeper sends another."""
    with writing(engine) as connection:
        connection.execute(
            update(kind.table)
            .where(kind.table.c.id == job_id, kind.table.c.status == "queued")
            .values(sent_at=None)
        )


def mark_sent(engine: Engine, kind: JobKind, job_id: str) -> None:
    """Record that a message for this job was just sent."""
    with writing(engine) as connection:
        connection.execute(
            update(kind.table).where(kind.table.c.id == job_id).values(sent_at=now())
        )


def request_cancel(connection: Connection, kind: JobKind, job_id: str) -> str | None:
    """Cancel a queued job, or mark a running one; return the new status, None if it is unknown."""
    table = kind.table
    # Locked: the job could go from running to queued between the two updates.
    connection.execute(select(table.c.id).where(table.c.id == job_id).with_for_update())
    row = connection.execute(
        update(table)
        .where(table.c.id == job_id, table.c.status == "queued")
        .values(status="cancelled", finished_at=now(), fence=table.c.fence + 1)
        .returning(*_identity(table))
    ).one_or_none()
    if row is not None:
        _announce(connection, kind, job_id, row.topic, "cancelled")
        _close(connection, kind, job_id, row.topic)
        return "cancelled"
    row = connection.execute(
        update(table)
        .where(table.c.id == job_id, table.c.status == "running")
        .values(status="cancelling")
        .returning(*_identity(table))
    ).one_or_none()
    if row is not None:
        _announce(connection, kind, job_id, row.topic, "cancelling")
        return "cancelling"
    return connection.execute(select(table.c.status).where(table.c.id == job_id)).scalar()


def _close(connection: Connection, kind: JobKind, job_id: str, topic: str) -> None:
    """Delete an ended job's unfinished parts, and end the events if nothing else is open.

    The finished parts of an evaluation are its results, which are stored elsewhere.
    """
    if part := kind.parts:
        over = part.whole_id == job_id
        if kind is JobKind.STUDY:
            over &= part.table.c.status != "succeeded"
        connection.execute(delete(part.table).where(over))
    if kind is JobKind.STUDY:
        status = connection.execute(select(studies.c.status).where(studies.c.id == job_id)).scalar()
        events.append(connection, topic, "end", {"status": status})
    elif kind in _ANNOUNCED:
        _end_if_over(connection, topic)


def _end_if_over(connection: Connection, merge_id: str) -> None:
    """Append `end` when the merge is final and none of its evaluations is open."""
    status = connection.execute(select(merges.c.status).where(merges.c.id == merge_id)).scalar()
    if status not in FINAL:
        return
    still_open = select(evaluations.c.id).where(
        evaluations.c.merge_id == merge_id, evaluations.c.status.in_(sorted(OPEN))
    )
    if connection.execute(still_open.limit(1)).first() is None:
        events.append(connection, merge_id, "end", {"status": status})


def _first(table: Table) -> Any:
    return func.coalesce(table.c.started_at, now())


def _identity(table: Table) -> tuple[Any, Any]:
    if table in (merges, studies):
        topic = table.c.id
    else:
        topic = table.c.study_id if table is study_pieces else table.c.merge_id
    return table.c.id, topic.label("topic")


def _hold(table: Table) -> tuple[Any, Any, Any]:
    return table.c.lease_owner, table.c.fence, table.c.lease_expires_at


def _announce(
    connection: Connection,
    kind: JobKind,
    job_id: str,
    topic: str,
    status: str,
    *,
    attempt: int | None = None,
    error: Any = None,
) -> None:
    if kind not in _ANNOUNCED:
        return
    data: dict[str, Any] = {"status": status}
    if attempt is not None:
        data["attempt"] = attempt
    if isinstance(error, Mapping):
        data["error"] = dict(error)
    if kind is JobKind.EVALUATION:
        events.append(connection, topic, "evaluation", {"id": job_id, **data})
    else:
        events.append(connection, topic, "status", data)
