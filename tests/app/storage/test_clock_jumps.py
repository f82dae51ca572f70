"""Nothing hangs or is lost if the database's clock is set back or forward by an hour."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, event

from app.contract.errors import IdempotencyConflictError
from app.storage import evaluations, events, fleet, idempotency, leases
from app.storage.change_tracker import ChangeTracker
from app.storage.database import clock, writing
from app.storage.fleet import Election
from app.storage.idempotency import IdempotencyKey, Reservation
from app.storage.leases import JobKind
from tests.app.storage.conftest import make_merge

HOUR = 3600.0
jumps = pytest.mark.parametrize("seconds", [-HOUR, HOUR], ids=["back", "forward"])


@pytest.fixture
def jump(engine: Engine) -> Callable[[float], None]:
    """What sets the database's clock for all that comes."""
    offset = 0.0

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def shift(connection, cursor, statement, parameters, context, executemany):
        moved = re.sub(r"julianday\('now'\)", f"julianday('now', '{offset} seconds')", statement)
        moved = moved.replace(
            "clock_timestamp()", f"(clock_timestamp() + interval '{offset} seconds')"
        )
        return moved, parameters

    def jump(seconds: float) -> None:
        nonlocal offset
        before = clock(engine)
        offset += seconds
        assert abs(clock(engine) - before - seconds) < 5

    return jump


@jumps
def test_a_job_keeps_its_living_worker_and_is_taken_from_a_dead_one(
    engine: Engine, merge_id: str, jump: Callable[[float], None], seconds: float
):
    dead = make_merge(engine)
    lease = leases.take(engine, JobKind.MERGE, merge_id, "alive", 10)
    assert lease is not None
    leases.take(engine, JobKind.MERGE, dead, "dead", 10)
    tracker = ChangeTracker(10.0)
    tracker.unchanged(leases.held(engine))
    jump(seconds)
    time.sleep(0.1)
    leases.renew(engine, lease, 10)
    held = leases.held(engine)
    run_out = {job: held[job] for job, age in tracker.unchanged(held).items() if age >= 0.1}
    [found] = leases.recover(engine, 5, {}, {}, run_out)
    assert (found.id, found.status) == (dead, "queued")
    assert leases.status_of(engine, lease) == "running"


@jumps
def test_a_sweeper_is_elected_though_the_last_one_vanished(
    engine: Engine, jump: Callable[[float], None], seconds: float
):
    assert Election(engine, "sweeper", "dead", 0.2).stand()
    jump(seconds)
    candidate = Election(engine, "sweeper", "a", 0.2)
    deadline = time.monotonic() + 10
    while not candidate.stand():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@jumps
def test_an_elected_sweeper_stays_elected(
    engine: Engine, jump: Callable[[float], None], seconds: float
):
    elected, other = (Election(engine, "sweeper", name, 30) for name in "ab")
    assert elected.stand()
    assert not other.stand()
    jump(seconds)
    assert not other.stand()
    assert elected.stand()


@jumps
def test_a_message_that_was_lost_is_sent_again(
    engine: Engine, merge_id: str, jump: Callable[[float], None], seconds: float
):
    leases.mark_sent(engine, JobKind.MERGE, merge_id)
    assert leases.waiting(engine, unsent_seconds=3.0) == []
    jump(seconds)
    assert leases.waiting(engine, unsent_seconds=3.0) == [(JobKind.MERGE, merge_id)]
    assert leases.waiting(engine, unsent_seconds=None) == []


@jumps
def test_only_workers_with_recent_heartbeats_are_alive(
    engine: Engine, jump: Callable[[float], None], seconds: float
):
    fleet.heartbeat(engine, "wrk_dead")
    fleet.heartbeat(engine, "wrk_alive")
    jump(seconds)
    fleet.heartbeat(engine, "wrk_alive")
    assert [row["id"] for row in fleet.alive(engine, 15)] == ["wrk_alive"]


@jumps
def test_an_idempotency_key_of_a_dead_request_is_free_and_of_an_ended_one_is_kept(
    engine: Engine, jump: Callable[[float], None], seconds: float
):
    dead = IdempotencyKey("key_1", "POST /merges", "dead", "f" * 64)
    ended = IdempotencyKey("key_1", "POST /merges", "ended", "f" * 64)
    first = idempotency.reserve(engine, dead, 86_400.0)
    made = idempotency.reserve(engine, ended, 86_400.0)
    assert isinstance(made, Reservation)
    merge_id = make_merge(engine)
    with writing(engine) as connection:
        idempotency.complete(connection, made, merge_id)
    jump(seconds)
    assert isinstance(idempotency.reserve(engine, dead, 86_400.0), Reservation)
    assert idempotency.reserve(engine, ended, 86_400.0) == merge_id
    assert isinstance(first, Reservation)
    with pytest.raises(IdempotencyConflictError), writing(engine) as connection:
        idempotency.complete(connection, first, merge_id)


@jumps
def test_progress_continues_and_the_newest_evaluation_is_the_last_created(
    engine: Engine, merge_id: str, jump: Callable[[float], None], seconds: float
):
    asked = []
    for step in (seconds, 0.0, 0.0):
        with writing(engine) as connection:
            asked.append(evaluations.create(connection, merge_id, {}))
            events.append(connection, merge_id, "evaluation", {})
        jump(step)
        if step:
            with writing(engine) as connection:
                assert events.age(connection, merge_id, "evaluation") > 0.5
    assert evaluations.latest(engine, [merge_id])[merge_id]["id"] == asked[-1]
    assert [row["id"] for row in evaluations.of_merge(engine, merge_id)] == asked[::-1]
