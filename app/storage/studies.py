"""The rows of studies, of their trials and of their decoding.

The rows are all that a study knows: any worker can go on with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)

from app.contract.evaluation import EvaluatedDataset
from app.contract.identifiers import PIECE, STUDY, new_id
from app.contract.states import OPEN, WANTED
from app.storage import events, leases
from app.storage.database import now, reading, writing
from app.storage.leases import JobKind, Lease, LeaseLostError, take_within, write
from app.storage.merges import progress
from app.storage.tables import studies, study_pieces, study_trials

UNIT = "trials"
# The dataset of a piece that has a share of every set; no dataset can have this name.
ALL_SETS = "*"


@dataclass(frozen=True)
class PlannedPiece:
    """A piece to create: a system on one rung's share of a development set, or of ALL_SETS."""

    system: str
    dataset: str
    rung: int
    utterances: int


@dataclass(frozen=True)
class Piece:
    """A claimed piece, owned as long as its lease lasts."""

    lease: Lease
    study_id: str
    system: str
    dataset: str
    rung: int
    utterances: int


def create(
    connection: Connection,
    *,
    name: str | None,
    request: Mapping[str, Any],
    sources: Mapping[str, Any],
    trials: int,
    seconds: float | None,
    warnings: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Insert a queued study within the caller's transaction and return its identifier."""
    study_id = new_id(STUDY)
    connection.execute(
        insert(studies).values(
            id=study_id,
            name=name,
            status="queued",
            request=dict(request),
            sources=dict(sources),
            trials=trials,
            seconds=seconds,
            progress_total=trials,
            progress_unit=UNIT,
            warnings=[dict(warning) for warning in warnings],
            created_at=now(),
        )
    )
    events.append(connection, study_id, "status", {"status": "queued"})
    for warning in warnings:
        events.append(connection, study_id, "warning", warning)
    return study_id


def get(engine: Engine, study_id: str) -> RowMapping | None:
    """Return the study's row, or None."""
    with reading(engine) as connection:
        query = select(studies).where(studies.c.id == study_id)
        return connection.execute(query).mappings().one_or_none()


def lock(connection: Connection, study_id: str) -> RowMapping | None:
    """Return the study's row, or None, and lock it until the transaction ends."""
    query = select(studies).where(studies.c.id == study_id).with_for_update(key_share=True)
    return connection.execute(query).mappings().one_or_none()


def page(
    engine: Engine,
    *,
    status: str | None = None,
    name: str | None = None,
    before: tuple[float, str] | None = None,
    size: int = 20,
) -> list[RowMapping]:
    """Return up to `size` rows, newest first, older than (created_at, id) in `before`."""
    query = select(studies).order_by(studies.c.created_at.desc(), studies.c.id.desc()).limit(size)
    for column, value in ((studies.c.status, status), (studies.c.name, name)):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(tuple_(studies.c.created_at, studies.c.id) < before)
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def counts(engine: Engine) -> dict[str, int]:
    """Return the number of studies by status."""
    query = select(studies.c.status, func.count()).group_by(studies.c.status)
    with reading(engine) as connection:
        return {str(status): int(count) for status, count in connection.execute(query)}


def extend(connection: Connection, study_id: str, *, trials: int, seconds: float | None) -> None:
    """Give a study a new budget; one that has ended is queued again."""
    connection.execute(
        update(studies)
        .where(studies.c.id == study_id)
        .values(trials=trials, seconds=seconds, progress_total=trials)
    )
    reopened = connection.execute(
        update(studies)
        .where(studies.c.id == study_id, studies.c.status.not_in(sorted(OPEN)))
        .values(
            status="queued",
            sent_at=None,
            finished_at=None,
            error=None,
            crashes=0,
            outcome={},
            fence=studies.c.fence + 1,
        )
    )
    if reopened.rowcount:
        # The time in between is no searching time.
        own = study_trials.c.study_id == study_id, study_trials.c.status == "running"
        connection.execute(update(study_trials).where(*own).values(created_at=now()))
        events.append(connection, study_id, "status", {"status": "queued"})


def remove(connection: Connection, study_id: str) -> None:
    """Delete the study with its trials and events; its merges stay."""
    connection.execute(delete(studies).where(studies.c.id == study_id))
    events.remove(connection, study_id)


def begin(engine: Engine, lease: Lease, device_type: str, sources: Mapping[str, Any]) -> None:
    """Record the sources' digests, and the device's type."""
    with writing(engine) as connection:
        write(connection, lease, {"device_type": device_type, "sources": dict(sources)})


def add_trials(engine: Engine, lease: Lease, planned: Iterable[Mapping[str, Any]]) -> None:
    """Insert running trials: number, candidate, point and recipe of each."""
    with writing(engine) as connection:
        leases.check(connection, lease)
        for trial in planned:
            connection.execute(
                insert(study_trials).values(
                    study_id=lease.id, status="running", scores={}, created_at=now(), **trial
                )
            )


def judge(engine: Engine, lease: Lease, verdicts: Mapping[int, Mapping[str, Any]]) -> None:
    """Record what a rung decided about trials (columns of each by number), and the progress."""
    table = study_trials
    with writing(engine) as connection:
        own = table.c.study_id == lease.id
        for number, verdict in verdicts.items():
            ended = {"finished_at": now()} if verdict["status"] != "running" else {}
            connection.execute(
                update(table).where(own, table.c.number == number).values(**verdict, **ended)
            )
        over = select(func.count()).where(own, table.c.status != "running")
        done = int(connection.execute(over.select_from(table)).scalar_one())
        total = connection.execute(
            select(studies.c.trials).where(studies.c.id == lease.id)
        ).scalar_one()
        # Crashes are counted since the last progress: a study may outlive many workers.
        counts = {"progress_done": done, "progress_total": max(total, done), "crashes": 0}
        write(connection, lease, counts)
        for number, verdict in verdicts.items():
            data = {"number": number, "status": verdict["status"], "reason": verdict.get("reason")}
            events.append(connection, lease.id, "trial", data)
        events.append(connection, lease.id, "progress", progress(done, max(total, done), UNIT))


def hold(connection: Connection, lease: Lease) -> RowMapping:
    """Return the running study's row, and lock it until the transaction ends.

    LeaseLostError if the lease is lost or the study is being cancelled: nothing is begun any more.
    """
    row = lock(connection, lease.id)
    if row is None or row["fence"] != lease.fence or row["status"] != "running":
        raise LeaseLostError(lease.id)
    return row


def keep(
    connection: Connection, lease: Lease, merge_ids: Mapping[int, str], outcome: Mapping[str, Any]
) -> None:
    """Record the merges that trials became, and the outcome so far.

    In the caller's transaction, which holds the study (see `hold`).
    """
    table = study_trials
    for number, merge_id in merge_ids.items():
        connection.execute(
            update(table)
            .where(table.c.study_id == lease.id, table.c.number == number)
            .values(merge_id=merge_id)
        )
    write(connection, lease, {"outcome": dict(outcome)})


def trials(engine: Engine, study_id: str) -> list[RowMapping]:
    """Return the study's trials without their recipes, in order."""
    columns = [column for column in study_trials.c if column.name != "recipe"]
    query = select(*columns).where(study_trials.c.study_id == study_id)
    with reading(engine) as connection:
        return list(connection.execute(query.order_by(study_trials.c.number)).mappings())


def seconds_used(trials: Iterable[Mapping[Any, Any]], time: float) -> float:
    """Return how long trials were searched until `time`: the sum over their batches.

    What lies between batches does not count, such as the time until a study was extended.
    """
    batches: dict[int, list[Mapping[Any, Any]]] = {}
    for trial in trials:
        batches.setdefault(trial["batch"], []).append(trial)
    used = 0.0
    for batch in batches.values():
        end = max(one["finished_at"] or time for one in batch)
        used += max(0.0, end - batch[0]["created_at"])
    return used


def trial_page(engine: Engine, study_id: str, *, start: int, size: int) -> list[RowMapping]:
    """Return up to `size` trials from number `start` on."""
    own = study_trials.c.study_id == study_id, study_trials.c.number >= start
    query = select(study_trials).where(*own).order_by(study_trials.c.number).limit(size)
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def add_pieces(engine: Engine, lease: Lease, planned: Sequence[PlannedPiece]) -> None:
    """Create the pieces that do not exist yet, in this order."""
    table = study_pieces
    with writing(engine) as connection:
        leases.check(connection, lease)
        own = table.c.study_id == lease.id
        key = select(table.c.system, table.c.dataset, table.c.rung).where(own)
        known = {tuple(row) for row in connection.execute(key)}
        position = len(known)
        for piece in planned:
            if (piece.system, piece.dataset, piece.rung) in known:
                continue
            connection.execute(
                insert(table).values(
                    id=new_id(PIECE),
                    study_id=lease.id,
                    status="queued",
                    position=position,
                    system=piece.system,
                    dataset=piece.dataset,
                    rung=piece.rung,
                    progress_total=piece.utterances,
                    warnings=[],
                    created_at=now(),
                )
            )
            position += 1


def claim(
    engine: Engine,
    study_id: str,
    owner: str,
    seconds: float,
    device_type: str,
    *,
    loaded: str | None = None,
    leading: bool = False,
) -> Piece | None:
    """Claim a free piece; None if there is none, or the study does not run on this type of device.

    Pieces of the system that the worker has `loaded` come first, then systems that no other worker
    decodes. Pieces left to the lead come first if `leading`, and are excluded otherwise.
    """
    table = study_pieces
    own = table.c.study_id == study_id
    with writing(engine) as connection:
        if _status(connection, study_id, device_type) not in WANTED:
            return None
        free: ColumnElement[bool] = own & (table.c.status == "queued")
        if not leading:
            free &= table.c.lead_only.is_(False)
        rows = connection.execute(select(table).where(free).order_by(table.c.position)).mappings()
        found = list(rows)
        if not found:
            return None
        running = select(table.c.system).where(own, table.c.status == "running")
        busy = set(connection.execute(running).scalars())
        row = min(
            found,
            key=lambda one: (
                not one["lead_only"],
                one["system"] != loaded,
                one["system"] in busy,
                one["position"],
            ),
        )
        lease = take_within(connection, JobKind.PIECE, row["id"], owner, seconds)
        if lease is None:
            return None
        return Piece(
            lease, study_id, row["system"], row["dataset"], row["rung"], row["progress_total"]
        )


def finish_piece(engine: Engine, piece: Piece, found: Sequence[EvaluatedDataset]) -> None:
    """Store the piece's results and end it; LeaseLostError if the study no longer runs."""
    result = [one.model_dump(mode="json") for one in found]
    with writing(engine) as connection:
        if _status(connection, piece.study_id) not in WANTED:
            raise LeaseLostError(piece.study_id)
        done = {"progress_done": piece.utterances, "result": result}
        leases.finish(connection, piece.lease, "succeeded", done)


def fail_piece(engine: Engine, piece: Piece, error: Mapping[str, Any]) -> None:
    """End a piece that cannot be decoded; LeaseLostError if the lease is lost."""
    with writing(engine) as connection:
        leases.finish(connection, piece.lease, "failed", {"error": dict(error)})


def open_pieces(engine: Engine, study_id: str) -> tuple[int, int]:
    """Return how many pieces are queued, and how many are running."""
    table = study_pieces
    query = (
        select(table.c.status, func.count())
        .where(table.c.study_id == study_id)
        .group_by(table.c.status)
    )
    with reading(engine) as connection:
        found = {str(status): int(count) for status, count in connection.execute(query)}
    return found.get("queued", 0), found.get("running", 0)


def results(
    engine: Engine, study_id: str, systems: Iterable[str] | None = None
) -> list[RowMapping]:
    """Return the finished and the failed pieces, in order: those of some systems, or of all."""
    table = study_pieces
    query = (
        select(table.c.system, table.c.dataset, table.c.rung, table.c.result, table.c.error)
        .where(table.c.study_id == study_id, table.c.status.in_(("succeeded", "failed")))
        .order_by(table.c.rung, table.c.position)
    )
    if systems is not None:
        query = query.where(table.c.system.in_(sorted(systems)))
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def unpack(row: Mapping[Any, Any]) -> list[EvaluatedDataset]:
    """Return the results of a finished piece, one for each of its sets."""
    return [EvaluatedDataset.model_validate(one) for one in row["result"] or ()]


def claimable(engine: Engine) -> list[str]:
    """Return the study's identifier for every piece that an idle worker could claim now."""
    table = study_pieces
    query = (
        select(table.c.study_id)
        .join(studies, studies.c.id == table.c.study_id)
        .where(studies.c.status == "running", table.c.status == "queued")
        .where(table.c.lead_only.is_(False))
        .order_by(table.c.created_at)
    )
    with reading(engine) as connection:
        return [str(study_id) for study_id in connection.execute(query).scalars()]


def _status(connection: Connection, study_id: str, device_type: str | None = None) -> str | None:
    """Lock the study's row until the transaction ends, and return its status.

    None if there is no such study, or it runs on another type of device than the one given.
    """
    query = select(studies.c.status).where(studies.c.id == study_id)
    if device_type is not None:
        query = query.where(studies.c.device_type == device_type)
    return connection.execute(query.with_for_update(key_share=True)).scalar()
