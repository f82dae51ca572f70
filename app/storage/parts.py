"""The parts of an evaluation: one system on one dataset each. Any worker may claim one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Select,
    delete,
    func,
    insert,
    select,
    update,
)

from app.contract.identifiers import PART, new_id
from app.contract.states import FINAL, WANTED
from app.storage import evaluations, events, leases
from app.storage.database import now, reading, writing
from app.storage.leases import UNOWNED, JobKind, Lease, LeaseLostError, take_within, write
from app.storage.merges import progress
from app.storage.tables import evaluation_parts as parts
from app.storage.tables import evaluations as evaluations_table

_UNIT = "utterances"
# Minimum time between an evaluation's progress events, however many workers decode it.
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class PlannedPart:
    """A part to create: its number of utterances, and its `lane`.

    Parts in one lane may share utterances, so they are decoded one after another.
    """

    system: str
    dataset: str
    manifest_sha256: str
    lane: str
    utterances: int


@dataclass(frozen=True)
class Part:
    """A claimed part, owned as long as its lease lasts."""

    lease: Lease
    evaluation_id: str
    position: int
    system: str
    dataset: str
    manifest_sha256: str
    utterances: int


def are_planned(engine: Engine, evaluation_id: str, device_type: str) -> bool:
    """Return whether the evaluation has parts for this type of device already."""
    own = parts.c.evaluation_id == evaluation_id, parts.c.device_type == device_type
    with reading(engine) as connection:
        return connection.execute(select(parts.c.id).where(*own).limit(1)).first() is not None


def plan(engine: Engine, lease: Lease, device_type: str, planned: Sequence[PlannedPart]) -> None:
    """Create the evaluation's parts, in this order, for one type of device.

    They replace the parts for another type.
    """
    total = sum(part.utterances for part in planned)
    with writing(engine) as connection:
        values = {"progress_done": 0, "progress_total": total, "progress_unit": _UNIT}
        write(connection, lease, values)
        connection.execute(delete(parts).where(parts.c.evaluation_id == lease.id))
        moment = connection.execute(select(now())).scalar_one()
        rows = [
            {
                "id": new_id(PART),
                "status": "queued",
                "merge_id": lease.topic,
                "evaluation_id": lease.id,
                "position": position,
                "system": part.system,
                "dataset": part.dataset,
                "manifest_sha256": part.manifest_sha256,
                "device_type": device_type,
                "lane": part.lane,
                "progress_total": part.utterances,
                "progress_unit": _UNIT,
                "created_at": moment,
            }
            for position, part in enumerate(planned)
        ]
        connection.execute(insert(parts), rows)


def claim(
    engine: Engine,
    evaluation_id: str,
    owner: str,
    seconds: float,
    device_type: str,
    *,
    leading: bool = False,
) -> Part | None:
    """Claim the first free part for this type of device; None if there is none.

    Parts left to the lead come first if `leading`, and are excluded otherwise. Returns None also if
    the evaluation is no longer running.
    """
    with writing(engine) as connection:
        if _lock(connection, evaluation_id) not in WANTED:
            return None
        own = parts.c.evaluation_id == evaluation_id, parts.c.device_type == device_type
        query = _free(select(parts), leading=leading).where(*own)
        query = query.order_by(parts.c.lead_only.desc(), parts.c.position).limit(1)
        row = connection.execute(query).mappings().first()
        if row is None:
            return None
        lease = take_within(connection, JobKind.PART, row["id"], owner, seconds)
        return _part(lease, row) if lease else None


def set_progress(engine: Engine, part: Part, done: int) -> None:
    """Record the part's progress, and the evaluation's.

    LeaseLostError if the lease is lost, or the evaluation is no longer running.
    """
    with writing(engine) as connection:
        evaluation_status = _lock_wanted(connection, part.evaluation_id)
        write(connection, part.lease, {"progress_done": done})
        _report_progress(connection, part, evaluation_status)


def finish(
    engine: Engine,
    part: Part,
    status: str,
    result: Mapping[str, Any],
    utterances: Sequence[Mapping[str, Any]],
) -> None:
    """Store the part's result and end it.

    LeaseLostError if the lease is lost, or the evaluation is no longer running.
    """
    with writing(engine) as connection:
        evaluation_status = _lock_wanted(connection, part.evaluation_id)
        leases.finish(connection, part.lease, status, {"progress_done": part.utterances})
        evaluations.save_result(
            connection,
            part.evaluation_id,
            system=part.system,
            dataset=part.dataset,
            position=part.position,
            result=result,
            utterances=utterances,
        )
        _report_progress(connection, part, evaluation_status)


def leave_to_lead(engine: Engine, lease: Lease) -> None:
    """Give a part back to the evaluation's lead only; LeaseLostError if the lease is lost."""
    with writing(engine) as connection:
        write(connection, lease, {**UNOWNED, "lead_only": True})


def statuses(engine: Engine, evaluation_id: str) -> Counter[str]:
    """Return the number of an evaluation's parts by status."""
    own = parts.c.evaluation_id == evaluation_id
    counts = select(parts.c.status, func.count()).where(own).group_by(parts.c.status)
    with reading(engine) as connection:
        return Counter({str(status): int(count) for status, count in connection.execute(counts)})


def claimable(engine: Engine) -> list[str]:
    """Return the evaluation's identifier for every part that an idle worker could claim now.

    Oldest first; an evaluation appears once for each part.
    """
    lanes = func.count(parts.c.lane.distinct())
    query = (
        _free(select(parts.c.evaluation_id, lanes), leading=False)
        .join(evaluations_table, evaluations_table.c.id == parts.c.evaluation_id)
        .where(evaluations_table.c.status == "running")
        .group_by(parts.c.evaluation_id)
        .order_by(func.min(parts.c.created_at))
    )
    with reading(engine) as connection:
        return [evaluation for evaluation, count in connection.execute(query) for _ in range(count)]


def delete_leftovers(engine: Engine) -> None:
    """Delete parts of ended evaluations, which workers of older versions leave behind."""
    ended = select(evaluations_table.c.id).where(evaluations_table.c.status.in_(sorted(FINAL)))
    with writing(engine) as connection:
        connection.execute(delete(parts).where(parts.c.evaluation_id.in_(ended)))


def _free(query: Select[Any], *, leading: bool) -> Select[Any]:
    """Restrict a query to queued parts in lanes without a running part."""
    if not leading:
        query = query.where(parts.c.lead_only.is_(False))
    other = parts.alias()
    busy = select(other.c.id).where(
        other.c.evaluation_id == parts.c.evaluation_id,
        other.c.lane == parts.c.lane,
        other.c.status == "running",
    )
    return query.where(parts.c.status == "queued", ~busy.exists())


def _lock(connection: Connection, evaluation_id: str) -> str | None:
    """Lock the evaluation's row until the transaction ends, and return its status.

    Must be the transaction's first lock: the evaluation's end takes it before those of parts.
    """
    query = select(evaluations_table.c.status).where(evaluations_table.c.id == evaluation_id)
    return connection.execute(query.with_for_update(key_share=True)).scalar()


def _lock_wanted(connection: Connection, evaluation_id: str) -> str:
    status = _lock(connection, evaluation_id)
    if status not in WANTED:
        raise LeaseLostError(evaluation_id)
    return status


def _report_progress(connection: Connection, part: Part, evaluation_status: str) -> None:
    own = parts.c.evaluation_id == part.evaluation_id
    count = select(func.sum(parts.c.progress_done), func.sum(parts.c.progress_total)).where(own)
    done, total = (int(number) for number in connection.execute(count).one())
    connection.execute(
        update(evaluations_table)
        .where(evaluations_table.c.id == part.evaluation_id)
        .values(progress_done=done, progress_total=total, progress_unit=_UNIT)
    )
    merge_id = part.lease.topic
    if done == total or events.age(connection, merge_id, "evaluation") >= _PROGRESS_SECONDS:
        data = {
            "id": part.evaluation_id,
            "status": evaluation_status,
            "progress": progress(done, total, _UNIT),
        }
        events.append(connection, merge_id, "evaluation", data)


def _part(lease: Lease, row: Mapping[Any, Any]) -> Part:
    return Part(
        lease=lease,
        evaluation_id=row["evaluation_id"],
        position=row["position"],
        system=row["system"],
        dataset=row["dataset"],
        manifest_sha256=row["manifest_sha256"],
        utterances=row["progress_total"],
    )
