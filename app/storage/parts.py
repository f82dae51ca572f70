"""The parts of an evaluation, one system on one dataset each: any worker may take one."""

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
from app.contract.states import FINAL
from app.storage import evaluations, events, leases
from app.storage.database import now, reading, writing
from app.storage.leases import UNOWNED, JobKind, Lease, LeaseLostError, take_within, write
from app.storage.merges import progress
from app.storage.tables import evaluation_parts as parts
from app.storage.tables import evaluations as evaluations_table

_UNIT = "utterances"
# Where an evaluation is while its parts are worth doing.
_WANTED = frozenset({"queued", "running"})
# However many workers are at it, an evaluation tells of its progress at most twice a second.
_TELL_SECONDS = 0.5


@dataclass(frozen=True)
class PlannedPart:
    """What a part is: `utterances` are to be decoded; those of one `lane` may be the same."""

    system: str
    dataset: str
    manifest_sha256: str
    lane: str
    utterances: int


@dataclass(frozen=True)
class Part:
    """A part that is ours for as long as its lease."""

    lease: Lease
    evaluation_id: str
    position: int
    system: str
    dataset: str
    manifest_sha256: str
    utterances: int


def are_planned(engine: Engine, evaluation_id: str, device_type: str) -> bool:
    """Return whether an earlier attempt has divided the evaluation, for this type of device."""
    own = parts.c.evaluation_id == evaluation_id, parts.c.device_type == device_type
    with reading(engine) as connection:
        return connection.execute(select(parts.c.id).where(*own).limit(1)).first() is not None


def plan(engine: Engine, lease: Lease, device_type: str, planned: Sequence[PlannedPart]) -> None:
    """Divide the evaluation of the lease into these parts, to be done in this order.

    All are decoded on one type of device. They replace what was planned for another.
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
                "merge_id": lease.merge_id,
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
    """Take the first part that is free and for this type of device.

    Parts that were left to the lead are for who is `leading`, and come first. None if there is
    nothing to take, or the evaluation is not wanted any more.
    """
    with writing(engine) as connection:
        if _lock(connection, evaluation_id) not in _WANTED:
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
    """Note how many of the part's utterances are decoded, and tell of the evaluation's progress.

    LeaseLostError if the part is not ours, or the evaluation is not wanted any more.
    """
    with writing(engine) as connection:
        evaluation_status = _lock_wanted(connection, part.evaluation_id)
        write(connection, part.lease, {"progress_done": done})
        _tell(connection, part, evaluation_status)


def finish(
    engine: Engine,
    part: Part,
    status: str,
    result: Mapping[str, Any],
    utterances: Sequence[Mapping[str, Any]],
) -> None:
    """Store what came of the part and end it.

    LeaseLostError if it is not ours, or the evaluation is not wanted any more.
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
        _tell(connection, part, evaluation_status)


def leave_to_lead(engine: Engine, lease: Lease) -> None:
    """Give a part back for nobody but the evaluation's lead; LeaseLostError if it is not ours."""
    with writing(engine) as connection:
        write(connection, lease, {**UNOWNED, "lead_only": True})


def statuses(engine: Engine, evaluation_id: str) -> Counter[str]:
    """Return how many of an evaluation's parts are in each status."""
    own = parts.c.evaluation_id == evaluation_id
    counts = select(parts.c.status, func.count()).where(own).group_by(parts.c.status)
    with reading(engine) as connection:
        return Counter({str(status): int(count) for status, count in connection.execute(counts)})


def spare(engine: Engine) -> list[str]:
    """Return the evaluation of every part that a worker without work could take, oldest first."""
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


def tidy(engine: Engine) -> None:
    """Delete the parts of evaluations that have ended: versions before did not know of them."""
    ended = select(evaluations_table.c.id).where(evaluations_table.c.status.in_(sorted(FINAL)))
    with writing(engine) as connection:
        connection.execute(delete(parts).where(parts.c.evaluation_id.in_(ended)))


def _free(query: Select[Any], *, leading: bool) -> Select[Any]:
    """Narrow a query to the parts that nobody has, in lanes where nobody is."""
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
    """Return the evaluation's status, which stays until the transaction ends.

    Always the first lock of those that parts take: the evaluation's end takes it before theirs.
    """
    query = select(evaluations_table.c.status).where(evaluations_table.c.id == evaluation_id)
    return connection.execute(query.with_for_update(key_share=True)).scalar()


def _lock_wanted(connection: Connection, evaluation_id: str) -> str:
    status = _lock(connection, evaluation_id)
    if status not in _WANTED:
        raise LeaseLostError(evaluation_id)
    return status


def _tell(connection: Connection, part: Part, evaluation_status: str) -> None:
    own = parts.c.evaluation_id == part.evaluation_id
    count = select(func.sum(parts.c.progress_done), func.sum(parts.c.progress_total)).where(own)
    done, total = (int(number) for number in connection.execute(count).one())
    connection.execute(
        update(evaluations_table)
        .where(evaluations_table.c.id == part.evaluation_id)
        .values(progress_done=done, progress_total=total, progress_unit=_UNIT)
    )
    merge_id = part.lease.merge_id
    if done == total or events.age(connection, merge_id, "evaluation") >= _TELL_SECONDS:
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
