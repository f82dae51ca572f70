from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from app.contract.states import FINAL
from app.storage import evaluations, events, leases, merges
from app.storage.database import writing
from app.storage.leases import JobKind, Lease, LeaseLostError
from tests.app.storage.conftest import make_merge

LOST = {"code": "worker_lost", "message": "m", "param": None, "retryable": True}
KILLED = {"code": "out_of_memory", "message": "m", "param": None, "retryable": True}


def take(engine: Engine, merge_id: str, seconds: float = 30.0, owner: str = "a") -> Lease:
    lease = leases.take(engine, JobKind.MERGE, merge_id, owner, seconds)
    assert lease is not None
    if seconds < 0:
        leases.abandon(engine, owner)
    return lease


def recover(engine: Engine, max_crashes: int = 5) -> list[str]:
    return [found.status for found in leases.recover(engine, max_crashes, LOST, KILLED)]


def status_of(engine: Engine, merge_id: str) -> str:
    row = merges.get(engine, merge_id)
    assert row is not None
    return str(row["status"])


def test_of_many_takers_one_gets_the_merge(engine: Engine, merge_id: str):
    barrier = threading.Barrier(8)

    def attempt(number: int) -> Lease | None:
        barrier.wait()
        return leases.take(engine, JobKind.MERGE, merge_id, f"owner-{number}", 30)

    with ThreadPoolExecutor(8) as pool:
        taken = [lease for lease in pool.map(attempt, range(8)) if lease]
    assert len(taken) == 1
    assert taken[0].fence == 1
    assert [event["data"]["status"] for event in events.read(engine, merge_id)] == [
        "queued",
        "running",
    ]


def test_an_attempt_that_lost_its_lease_changes_nothing(engine: Engine, merge_id: str):
    old = take(engine, merge_id, seconds=-1)
    assert recover(engine) == ["queued"]
    new = take(engine, merge_id, owner="b")
    assert new.fence > old.fence
    assert new.attempt == 2
    attempts = (
        lambda: leases.renew(engine, old, 30),
        lambda: leases.status_of(engine, old),
        lambda: leases.give_back(engine, old),
        lambda: merges.set_phase(engine, old, "merging"),
        lambda: merges.set_progress(engine, old, 1, 2, "tensors"),
        lambda: merges.set_sources(engine, old, {}),
        lambda: merges.set_warnings(engine, old, [{"code": "x", "message": "y"}]),
        lambda: _finish(engine, old, "succeeded"),
    )
    for attempt in attempts:
        with pytest.raises(LeaseLostError):
            attempt()
    row = merges.get(engine, merge_id)
    assert row is not None
    assert (row["status"], row["fence"], row["phase"]) == ("running", new.fence, None)
    _finish(engine, new, "succeeded")
    assert status_of(engine, merge_id) == "succeeded"


def _finish(engine: Engine, lease: Lease, status: str) -> None:
    with writing(engine) as connection:
        leases.finish(connection, lease, status)


def test_a_lease_that_is_renewed_is_not_recovered(engine: Engine, merge_id: str):
    lease = take(engine, merge_id)
    seen = leases.held(engine)
    leases.renew(engine, lease, 30)
    assert leases.recover(engine, 5, LOST, KILLED, seen) == []
    assert leases.status_of(engine, lease) == "running"
    [found] = leases.recover(engine, 5, LOST, KILLED, leases.held(engine))
    assert (found.id, found.status) == (merge_id, "queued")


def test_a_merge_whose_workers_keep_dying_fails_in_the_end(engine: Engine, merge_id: str):
    outcomes = []
    for _ in range(3):
        take(engine, merge_id, seconds=-1)
        outcomes += recover(engine, max_crashes=3)
    assert outcomes == ["queued", "queued", "failed"]
    row = merges.get(engine, merge_id)
    assert row is not None
    assert row["error"]["code"] == "worker_lost"
    assert events.read(engine, merge_id)[-1]["type"] == "end"


def test_a_child_that_was_killed_may_have_run_out_of_memory(engine: Engine, merge_id: str):
    take(engine, merge_id, owner="host:1:child")
    leases.abandon(engine, "host:1", killed=True)
    assert recover(engine, max_crashes=1) == ["failed"]
    row = merges.get(engine, merge_id)
    assert row is not None
    assert row["error"]["code"] == "out_of_memory"


def test_abandoning_takes_the_leases_of_that_owner_only(engine: Engine):
    mine, other = make_merge(engine), make_merge(engine)
    take(engine, mine, owner="host_1:a")
    take(engine, other, owner="hostX1:a")
    leases.abandon(engine, "host_1", killed=False)
    assert recover(engine) == ["queued"]
    assert (status_of(engine, mine), status_of(engine, other)) == ("queued", "running")


def test_a_cancelled_merge_whose_worker_died_ends_cancelled(engine: Engine, merge_id: str):
    take(engine, merge_id, seconds=-1)
    assert cancel(engine, merge_id) == "cancelling"
    assert recover(engine) == ["cancelled"]
    assert status_of(engine, merge_id) == "cancelled"


def cancel(engine: Engine, merge_id: str) -> str | None:
    with writing(engine) as connection:
        return leases.request_cancel(connection, JobKind.MERGE, merge_id)


def test_cancelling_twice_has_the_same_result(engine: Engine, merge_id: str):
    assert [cancel(engine, merge_id) for _ in range(2)] == ["cancelled", "cancelled"]
    running = make_merge(engine)
    lease = take(engine, running)
    assert [cancel(engine, running) for _ in range(2)] == ["cancelling", "cancelling"]
    assert leases.status_of(engine, lease) == "cancelling"
    assert cancel(engine, "mrg_none") is None


def test_a_publication_that_commits_first_wins_over_cancelling(engine: Engine, merge_id: str):
    lease = take(engine, merge_id)
    cancel(engine, merge_id)
    _finish(engine, lease, "succeeded")
    assert cancel(engine, merge_id) == "succeeded"


def test_taking_and_cancelling_at_once_never_lose_the_cancellation(engine: Engine):
    """Whoever is first: the merge is cancelled, or its attempt is told to cancel."""
    for _ in range(10):
        merge_id = make_merge(engine)
        barrier = threading.Barrier(2)

        def attempt(barrier=barrier, merge_id=merge_id) -> None:
            barrier.wait()
            lease = leases.take(engine, JobKind.MERGE, merge_id, "a", 30)
            if lease is not None:
                try:
                    leases.give_back(engine, lease)
                except LeaseLostError:
                    return

        thread = threading.Thread(target=attempt)
        thread.start()
        barrier.wait()
        assert cancel(engine, merge_id) in {"cancelled", "cancelling"}
        thread.join()
        assert status_of(engine, merge_id) in {"cancelled", "cancelling"}


def test_recovering_never_undoes_an_end(engine: Engine):
    """The sweeper sees a lapsed lease just as its slow owner finishes: one of them wins."""
    for _ in range(10):
        merge_id = make_merge(engine)
        lease = take(engine, merge_id, seconds=-1)
        barrier = threading.Barrier(2)
        finished = []

        def end(barrier=barrier, lease=lease, finished=finished) -> None:
            barrier.wait()
            try:
                _finish(engine, lease, "succeeded")
                finished.append(True)
            except LeaseLostError:
                finished.append(False)

        thread = threading.Thread(target=end)
        thread.start()
        barrier.wait()
        recover(engine)
        thread.join()
        assert status_of(engine, merge_id) == ("succeeded" if finished[0] else "queued")


def test_only_unsent_jobs_wait_for_the_sweeper_oldest_first(engine: Engine):
    first, second, sent = (make_merge(engine) for _ in range(3))
    leases.mark_sent(engine, JobKind.MERGE, sent)
    found = [job_id for _, job_id in leases.waiting(engine, unsent_seconds=60)]
    assert found == [first, second]
    assert len(leases.waiting(engine, unsent_seconds=-1)) == 3


@pytest.mark.parametrize(
    ("crashes", "killed", "goes_first"), [(0, False, True), (1, False, True), (1, True, False),
                                          (2, False, False)]
)  # fmt: skip
def test_a_job_that_killed_its_worker_waits_its_turn(
    engine: Engine, merge_id: str, crashes: int, killed: bool, goes_first: bool
):
    make_merge(engine)
    for _ in range(crashes):
        take(engine, merge_id)
        leases.abandon(engine, "a", killed=killed)
        assert recover(engine) == ["queued"]
    if not crashes:
        leases.give_back(engine, take(engine, merge_id))
    first = leases.interrupted(engine)
    assert first == ((JobKind.MERGE, merge_id) if goes_first else None)


def test_the_log_ends_when_the_last_evaluation_has(engine: Engine, merge_id: str):
    lease = take(engine, merge_id)
    with writing(engine) as connection:
        evaluation_id = evaluations.create(connection, merge_id, {})
        leases.finish(connection, lease, "succeeded")
    assert "end" not in _types(engine, merge_id)
    evaluating = leases.take(engine, JobKind.EVALUATION, evaluation_id, "a", 30)
    assert evaluating is not None
    _finish(engine, evaluating, "partial")
    assert _types(engine, merge_id)[-1] == "end"
    assert _types(engine, merge_id).count("end") == 1


def _types(engine: Engine, merge_id: str) -> list[str]:
    return [event["type"] for event in events.read(engine, merge_id)]


def test_a_worker_that_stops_gives_its_job_back(engine: Engine, merge_id: str):
    lease = take(engine, merge_id)
    leases.give_back(engine, lease)
    assert status_of(engine, merge_id) == "queued"
    assert status_of(engine, merge_id) not in FINAL
    assert take(engine, merge_id).fence == 2
