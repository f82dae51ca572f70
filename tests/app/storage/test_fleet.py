from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from app.storage import fleet


def test_of_many_candidates_one_is_elected(engine: Engine):
    for role in ("first", "second", "third"):
        barrier = threading.Barrier(6)

        def stand(number: int, role=role, barrier=barrier) -> bool:
            barrier.wait()
            return fleet.elect(engine, role, f"owner-{number}", 30)

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(stand, range(6))) == 1


def test_a_role_is_kept_by_its_owner_and_free_after_its_time(engine: Engine):
    assert fleet.elect(engine, "sweeper", "a", 30)
    assert not fleet.elect(engine, "sweeper", "b", 30)
    assert fleet.elect(engine, "sweeper", "a", -1)
    assert fleet.elect(engine, "sweeper", "b", 30)
    assert not fleet.elect(engine, "sweeper", "a", 30)


def test_alive_are_those_seen_lately_that_were_not_told_to_stop(engine: Engine):
    for name in ("wrk_1", "wrk_2", "wrk_3"):
        fleet.enlist(engine, name, "host")
    fleet.stop(engine, "wrk_2")
    fleet.dismiss(engine, "wrk_3")
    fleet.seen(engine, "wrk_1")
    assert [worker["id"] for worker in fleet.alive(engine, 15)] == ["wrk_1"]
    assert fleet.alive(engine, -1) == []


def test_a_worker_that_was_forgotten_returns(engine: Engine):
    fleet.seen(engine, "wrk_1", "host")
    fleet.seen(engine, "wrk_2")
    found = {worker["id"]: worker["host"] for worker in fleet.alive(engine, 15)}
    assert found == {"wrk_1": "host", "wrk_2": socket.gethostname()}


def test_being_seen_changes_nothing_else(engine: Engine):
    fleet.enlist(engine, "wrk_1", "host")
    fleet.stop(engine, "wrk_1")
    fleet.seen(engine, "wrk_1", "another")
    assert fleet.alive(engine, 15) == []
