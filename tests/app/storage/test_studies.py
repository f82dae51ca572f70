"""The rows of studies: pieces belong to one worker, and an outdated lead changes nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from app.storage import events, leases, parts, studies
from app.storage.database import reading, writing
from app.storage.leases import JobKind, Lease, LeaseLostError
from app.storage.studies import PlannedPiece
from app.storage.tables import studies as studies_table
from app.storage.tables import study_pieces, study_trials

LOST = {"code": "worker_lost", "message": "m", "param": None, "retryable": True}
SOURCES = {"base": None, "checkpoints": [], "references": []}


@pytest.fixture
def lead(engine: Engine) -> Lease:
    """The lease of a study with three trials of one batch."""
    with writing(engine) as connection:
        study_id = studies.create(
            connection, name=None, request={}, sources=SOURCES, trials=6, seconds=60.0
        )
    lease = take(engine, study_id)
    studies.begin(engine, lease, "cpu", SOURCES)
    studies.add_trials(engine, lease, [trial(number, 0) for number in range(3)])
    return lease


def take(engine: Engine, study_id: str) -> Lease:
    lease = leases.take(engine, JobKind.STUDY, study_id, "wrk_lead:x:1:1", 30)
    assert lease is not None
    return lease


def trial(number: int, batch: int) -> dict[str, Any]:
    return {"number": number, "batch": batch, "candidate": 0, "point": {}, "recipe": {}}


def planned(*systems: str) -> list[PlannedPiece]:
    return [PlannedPiece(system, name, 0, 5) for system in systems for name in ("calls", "news")]


def crash(engine: Engine, most: int = 3) -> None:
    leases.abandon(engine, "wrk_")
    leases.recover(engine, most, LOST, LOST)


def ended(status: str = "stopped") -> dict[str, Any]:
    return {"status": status, "reason": None, "rungs": 1, "scores": {}}


def test_of_many_workers_each_gets_another_piece(engine: Engine, lead: Lease):
    studies.add_pieces(engine, lead, planned("#0", "#1", "#2"))
    barrier = threading.Barrier(8)

    def claim(number: int) -> tuple[str, str] | None:
        barrier.wait()
        piece = studies.claim(engine, lead.id, f"owner-{number}", 30, "cpu")
        return (piece.system, piece.dataset) if piece else None

    with ThreadPoolExecutor(8) as pool:
        taken = [one for one in pool.map(claim, range(8)) if one]
    assert sorted(taken) == sorted((one.system, one.dataset) for one in planned("#0", "#1", "#2"))


def test_a_worker_prefers_what_it_has_loaded_and_then_what_no_other_decodes(
    engine: Engine, lead: Lease
):
    studies.add_pieces(engine, lead, planned("#0", "#1", "#2"))

    def claim(loaded: str | None) -> str:
        piece = studies.claim(engine, lead.id, "wrk_other:x:2:2", 30, "cpu", loaded=loaded)
        assert piece is not None
        return piece.system

    assert [claim("#1"), claim(None), claim(None)] == ["#1", "#0", "#2"]
    assert studies.claim(engine, lead.id, "wrk_gpu:x:3:3", 30, "cuda") is None


def test_pieces_are_planned_once(engine: Engine, lead: Lease):
    studies.add_pieces(engine, lead, planned("#0"))
    studies.add_pieces(engine, lead, planned("#0", "#1"))
    assert studies.open_pieces(engine, lead.id) == (4, 0)


def test_a_lost_or_failed_piece_is_left_to_the_lead(engine: Engine, lead: Lease):
    studies.add_pieces(engine, lead, planned("#0"))
    for _ in range(2):
        assert studies.claim(engine, lead.id, "wrk_other:x:2:2", 30, "cpu") is not None
    leases.abandon(engine, "wrk_other")
    leases.recover(engine, 1, LOST, LOST)  # a piece never fails for crashes
    assert studies.claim(engine, lead.id, "wrk_other:x:2:2", 30, "cpu") is None
    piece = studies.claim(engine, lead.id, lead.owner, 30, "cpu", leading=True)
    assert piece is not None
    parts.leave_to_lead(engine, piece.lease)
    assert studies.claim(engine, lead.id, "wrk_other:x:2:2", 30, "cpu") is None
    assert studies.claimable(engine) == []


@pytest.mark.parametrize("how", ["crash", "cancel"])
def test_a_result_counts_only_while_piece_and_study_are_the_workers(
    engine: Engine, lead: Lease, how: str
):
    studies.add_pieces(engine, lead, planned("#0"))
    piece = studies.claim(engine, lead.id, "wrk_other:x:2:2", 30, "cpu")
    assert piece is not None
    if how == "crash":
        crash(engine)
    else:
        with writing(engine) as connection:
            leases.request_cancel(connection, JobKind.STUDY, lead.id)
    with pytest.raises(LeaseLostError):
        studies.finish_piece(engine, piece, [])
    assert studies.results(engine, lead.id) == []


def test_an_outdated_lead_changes_nothing(engine: Engine, lead: Lease):
    crash(engine)
    take(engine, lead.id)
    attempts = [
        lambda: studies.add_trials(engine, lead, [trial(3, 1)]),
        lambda: studies.add_pieces(engine, lead, planned("#0")),
        lambda: studies.judge(engine, lead, {0: ended()}),
    ]
    for attempt in attempts:
        with pytest.raises(LeaseLostError):
            attempt()
    with writing(engine) as connection, pytest.raises(LeaseLostError):
        studies.hold(connection, lead)
    assert [one["status"] for one in studies.trials(engine, lead.id)] == ["running"] * 3
    assert studies.open_pieces(engine, lead.id) == (0, 0)


def test_a_study_that_is_being_cancelled_begins_no_merges(engine: Engine, lead: Lease):
    with writing(engine) as connection:
        assert studies.hold(connection, lead)["id"] == lead.id
        leases.request_cancel(connection, JobKind.STUDY, lead.id)
    with writing(engine) as connection, pytest.raises(LeaseLostError):
        studies.hold(connection, lead)


def test_crashes_are_counted_since_the_last_progress(engine: Engine, lead: Lease):
    for number in range(3):
        crash(engine)
        crash(engine)
        lease = take(engine, lead.id)
        studies.judge(engine, lease, {number: ended()})
    for _ in range(3):
        crash(engine)
        leases.take(engine, JobKind.STUDY, lead.id, "wrk_lead:x:1:1", 30)
    row = studies.get(engine, lead.id)
    assert row is not None
    assert row["status"] == "failed"


def test_pauses_between_batches_are_no_searching_time(engine: Engine, lead: Lease):
    studies.judge(engine, lead, {number: ended() for number in range(3)})
    studies.add_trials(engine, lead, [trial(3, 1)])
    _at(engine, {0: (0, 10), 1: (0, 20), 2: (0, 15), 3: (1000, None)})
    trials = studies.trials(engine, lead.id)
    assert studies.seconds_used(trials, 1005) == 25
    assert studies.seconds_used(trials[:3], 1005) == 20
    assert studies.seconds_used([], 1005) == 0


def test_the_time_between_an_end_and_an_extension_is_no_searching_time(engine: Engine, lead: Lease):
    _at(engine, dict.fromkeys(range(3), (0, None)))
    with writing(engine) as connection:
        leases.finish(connection, lead, "failed", {"error": LOST})
        studies.extend(connection, lead.id, trials=8, seconds=60.0)
        moment = connection.execute(select(studies_table.c.created_at)).scalar_one()
    row = studies.get(engine, lead.id)
    assert row is not None
    assert (row["status"], row["trials"], row["error"]) == ("queued", 8, None)
    assert studies.seconds_used(studies.trials(engine, lead.id), moment + 30) <= 30


def test_a_study_that_ends_keeps_its_results_and_no_open_pieces(engine: Engine, lead: Lease):
    studies.add_pieces(engine, lead, planned("#0"))
    piece = studies.claim(engine, lead.id, lead.owner, 30, "cpu", leading=True)
    assert piece is not None
    studies.finish_piece(engine, piece, [])
    with writing(engine) as connection:
        leases.finish(connection, lead, "succeeded")
    assert [row["system"] for row in studies.results(engine, lead.id)] == ["#0"]
    assert studies.open_pieces(engine, lead.id) == (0, 0)
    assert events.read(engine, lead.id)[-1]["data"] == {"status": "succeeded"}
    with writing(engine) as connection:
        studies.remove(connection, lead.id)
    with reading(engine) as connection:
        for table in (study_trials, study_pieces):
            assert connection.execute(select(table)).first() is None


def _at(engine: Engine, times: dict[int, tuple[float, float | None]]) -> None:
    with writing(engine) as connection:
        for number, (begin, end) in times.items():
            values = {"created_at": begin, "finished_at": end}
            connection.execute(
                update(study_trials).where(study_trials.c.number == number).values(**values)
            )
