"""Parts of an evaluation: each belongs to one worker, and they are deleted with the evaluation."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, select, update

from app.storage import evaluations, events, leases, parts
from app.storage.database import migrate, now, reading, writing
from app.storage.leases import JobKind, Lease, LeaseLostError
from app.storage.parts import Part, PlannedPart
from app.storage.tables import (
    evaluation_parts,
    evaluation_results,
    studies,
    study_pieces,
    study_trials,
)
from app.storage.tables import evaluations as evaluations_table
from app.storage.tables import events as events_table

LOST = {"code": "worker_lost", "message": "m", "param": None, "retryable": True}


def planned(*lanes: str) -> list[PlannedPart]:
    return [
        PlannedPart("merge", f"set-{n}", "a" * 64, lane, utterances=10)
        for n, lane in enumerate(lanes)
    ]


@pytest.fixture
def lead(engine: Engine, merge_id: str) -> Lease:
    """The lease of an evaluation whose parts are not planned yet."""
    merging = leases.take(engine, JobKind.MERGE, merge_id, "a", 30)
    assert merging is not None
    with writing(engine) as connection:
        evaluation_id = evaluations.create(connection, merge_id, {})
        leases.finish(connection, merging, "succeeded")
    lease = leases.take(engine, JobKind.EVALUATION, evaluation_id, "wrk_lead:x:1:1", 30)
    assert lease is not None
    return lease


def claim(engine: Engine, lead: Lease, owner: str = "wrk_other:x:2:2", seconds: float = 30) -> Part:
    part = parts.claim(engine, lead.id, owner, seconds, "cpu")
    assert part is not None
    if seconds < 0:
        leases.abandon(engine, owner)
    return part


def test_of_many_workers_each_gets_another_part(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned(*"abcdef"))
    barrier = threading.Barrier(8)

    def take(number: int) -> Part | None:
        barrier.wait()
        return parts.claim(engine, lead.id, f"owner-{number}", 30, "cpu")

    with ThreadPoolExecutor(8) as pool:
        taken = [part.dataset for part in pool.map(take, range(8)) if part]
    assert sorted(taken) == [f"set-{n}" for n in range(6)]


def test_parts_of_one_lane_are_never_under_way_together(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned("a", "a", "b"))
    first = claim(engine, lead)
    assert claim(engine, lead).dataset == "set-2"
    assert parts.claim(engine, lead.id, "x", 30, "cpu") is None
    assert parts.claimable(engine) == []
    parts.finish(engine, first, "succeeded", {}, [])
    assert parts.claimable(engine) == [lead.id]
    assert claim(engine, lead).dataset == "set-1"


def test_a_part_that_lost_its_worker_is_free_again_and_its_old_worker_is_shut_out(
    engine: Engine, lead: Lease
):
    parts.plan(engine, lead, "cpu", planned("a"))
    old = claim(engine, lead, seconds=-1)
    assert [found.kind for found in leases.recover(engine, 5, LOST, LOST)] == [JobKind.PART]
    new = parts.claim(engine, lead.id, lead.owner, 30, "cpu", leading=True)
    assert new is not None
    assert new.lease.attempt == 2
    for attempt in (
        lambda: parts.finish(engine, old, "succeeded", {}, []),
        lambda: parts.set_progress(engine, old, 1),
        lambda: leases.renew(engine, old.lease, 30),
        lambda: leases.status_of(engine, old.lease),
    ):
        with pytest.raises(LeaseLostError):
            attempt()
    parts.finish(engine, new, "succeeded", {"n": 1}, [])
    assert [row["result"] for row in evaluations.results(engine, lead.topic)] == [{"n": 1}]


def test_a_part_that_killed_its_worker_is_left_to_the_lead_and_ends_nothing(
    engine: Engine, lead: Lease
):
    parts.plan(engine, lead, "cpu", planned("a", "b", "b"))
    first = claim(engine, lead, owner=lead.owner)
    assert claim(engine, lead, seconds=-1).dataset == "set-1"
    leases.recover(engine, 1, LOST, LOST)
    assert parts.statuses(engine, lead.id) == {"running": 1, "queued": 2}
    other = claim(engine, lead)
    assert other.dataset == "set-2"
    parts.finish(engine, other, "succeeded", {}, [])
    _check_that_only_the_lead_gets(engine, lead, "set-1")
    assert leases.status_of(engine, first.lease) == "running"


def test_a_part_that_its_worker_cannot_do_is_left_to_the_lead(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned("a", "b"))
    part = claim(engine, lead)
    parts.leave_to_lead(engine, part.lease)
    with pytest.raises(LeaseLostError):
        parts.leave_to_lead(engine, part.lease)
    assert claim(engine, lead).dataset == "set-1"
    _check_that_only_the_lead_gets(engine, lead, "set-0")


def _check_that_only_the_lead_gets(engine: Engine, lead: Lease, dataset: str) -> None:
    assert parts.claimable(engine) == []
    assert parts.claim(engine, lead.id, "wrk_other:x:2:2", 30, "cpu") is None
    part = parts.claim(engine, lead.id, lead.owner, 30, "cpu", leading=True)
    assert part is not None
    assert part.dataset == dataset


def test_a_part_with_skipped_utterances_is_finished(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned("a"))
    parts.finish(engine, claim(engine, lead), "failed", {}, [])
    assert parts.statuses(engine, lead.id) == {"failed": 1}


@pytest.mark.parametrize("end", ["cancelled", "failed", "succeeded"])
def test_nothing_is_left_to_do_when_the_evaluation_has_ended(engine: Engine, lead: Lease, end: str):
    parts.plan(engine, lead, "cpu", planned("a", "b"))
    other = claim(engine, lead)
    if end == "cancelled":
        with writing(engine) as connection:
            assert leases.request_cancel(connection, JobKind.EVALUATION, lead.id) == "cancelling"
        with pytest.raises(LeaseLostError):  # at once, before the evaluation's own worker has acted
            leases.status_of(engine, other.lease)
        assert parts.claim(engine, lead.id, "x", 30, "cpu") is None
    with writing(engine) as connection:
        leases.finish(connection, lead, end)
    with reading(engine) as connection:
        assert connection.execute(select(evaluation_parts)).all() == []
    with pytest.raises(LeaseLostError):
        parts.finish(engine, other, "succeeded", {}, [])
    with reading(engine) as connection:
        assert connection.execute(select(evaluation_results)).all() == []
    assert events.read(engine, lead.topic)[-1]["type"] == "end"


def test_a_worker_that_stops_gives_back_its_parts_and_no_other(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned("a", "b"))
    own, other = claim(engine, lead, owner=lead.owner), claim(engine, lead)
    leases.give_back(engine, lead)
    assert parts.statuses(engine, lead.id) == {"queued": 1, "running": 1}
    assert leases.status_of(engine, other.lease) == "running"
    # Whoever is there goes on while the evaluation waits for another to lead it.
    assert claim(engine, lead).dataset == own.dataset
    again = leases.take(engine, JobKind.EVALUATION, lead.id, "b", 30)
    assert again is not None
    assert again.attempt == 2
    assert parts.are_planned(engine, lead.id, "cpu")


def test_what_is_decoded_on_two_kinds_of_device_is_never_mixed(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cuda", planned("a", "b"))
    assert parts.claim(engine, lead.id, "x", 30, "cpu") is None
    other = parts.claim(engine, lead.id, "x", 30, "cuda")
    assert other is not None
    # Whoever leads next has no such device, and begins anew.
    assert not parts.are_planned(engine, lead.id, "cpu")
    parts.plan(engine, lead, "cpu", planned("a", "b"))
    with pytest.raises(LeaseLostError):
        parts.finish(engine, other, "succeeded", {}, [])
    assert parts.statuses(engine, lead.id) == {"queued": 2}


def test_progress_is_the_sum_of_the_parts_and_told_twice_a_second_at_most(
    engine: Engine, lead: Lease
):
    parts.plan(engine, lead, "cpu", planned("a", "b"))
    first, second = claim(engine, lead), claim(engine, lead)
    with writing(engine) as connection:
        connection.execute(update(events_table).values(created_at=now() - 10))
    for done in (2, 3, 4):
        parts.set_progress(engine, first, done)
        parts.set_progress(engine, second, done)
    row = evaluations.get(engine, lead.id)
    assert row is not None
    assert (row["progress_done"], row["progress_total"]) == (8, 20)
    assert _told(engine, lead) == [2]
    for part in (first, second):
        parts.finish(engine, part, "succeeded", {}, [])
    assert _told(engine, lead) == [2, 20]


def test_progress_events_have_the_evaluations_status(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned("a"))
    part = claim(engine, lead)
    leases.give_back(engine, lead)
    with writing(engine) as connection:
        connection.execute(update(events_table).values(created_at=now() - 10))
    parts.set_progress(engine, part, 5)
    last = events.read(engine, lead.topic)[-1]["data"]
    assert (last["status"], last["progress"]["done"]) == ("queued", 5)


def test_a_part_of_a_cancelling_evaluation_writes_nothing(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned("a"))
    part = claim(engine, lead)
    with writing(engine) as connection:
        leases.request_cancel(connection, JobKind.EVALUATION, lead.id)
        connection.execute(update(events_table).values(created_at=now() - 10))
    for attempt in (
        lambda: parts.set_progress(engine, part, 5),
        lambda: parts.finish(engine, part, "succeeded", {}, []),
    ):
        with pytest.raises(LeaseLostError):
            attempt()
    assert evaluations.results(engine, lead.topic) == []
    assert events.read(engine, lead.topic)[-1]["data"]["status"] == "cancelling"


def _told(engine: Engine, lead: Lease) -> list[int]:
    data = [event["data"] for event in events.read(engine, lead.topic)]
    return [one["progress"]["done"] for one in data if "progress" in one]


@pytest.mark.parametrize("its_worker", ["goes on", "is gone"])
def test_an_evaluation_that_an_upgrade_finds_under_way_ends_all_the_same(
    engine: Engine, lead: Lease, its_worker: str
):
    _downgrade(engine)
    migrate(engine)
    if its_worker == "is gone":
        leases.abandon(engine, lead.owner)
        leases.recover(engine, 5, LOST, LOST)
        again = leases.take(engine, JobKind.EVALUATION, lead.id, "b", 30)
        assert again is not None
        assert not parts.are_planned(engine, lead.id, "cpu")
        parts.plan(engine, again, "cpu", planned("a"))
        lead = again
    with writing(engine) as connection:
        leases.finish(connection, lead, "succeeded")
    row = evaluations.get(engine, lead.id)
    assert row is not None
    assert row["status"] == "succeeded"


def _downgrade(engine: Engine) -> None:
    """Put the schema back to before there were parts, studies and detected languages."""
    with engine.begin() as connection:
        for table in (evaluation_parts, study_pieces, study_trials, studies, events_table):
            table.drop(connection)
        connection.exec_driver_sql(
            "CREATE TABLE events (merge_id VARCHAR(30) NOT NULL, sequence INTEGER NOT NULL, "
            "type VARCHAR(20) NOT NULL, data JSON NOT NULL, created_at FLOAT NOT NULL, "
            "CONSTRAINT pk_events PRIMARY KEY (merge_id, sequence), CONSTRAINT fk_events_merge_id "
            "FOREIGN KEY (merge_id) REFERENCES merges (id) ON DELETE CASCADE)"
        )
        connection.exec_driver_sql("ALTER TABLE transcripts DROP COLUMN detected_language")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")


def test_parts_are_no_jobs_that_messages_name(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned("a", "b"))
    claim(engine, lead, seconds=-1)
    leases.recover(engine, 5, LOST, LOST)
    assert leases.waiting(engine, unsent_seconds=-1) == []
    assert leases.interrupted(engine) is None


def test_parts_left_by_another_version_are_deleted(engine: Engine, lead: Lease):
    parts.plan(engine, lead, "cpu", planned("a"))
    parts.delete_leftovers(engine)
    assert parts.statuses(engine, lead.id) == {"queued": 1}
    with writing(engine) as connection:
        connection.execute(update(evaluations_table).values(status="succeeded"))
    parts.delete_leftovers(engine)
    assert parts.statuses(engine, lead.id) == {}
