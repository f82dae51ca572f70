from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from app.storage import fleet
from app.storage.fleet import Election


def test_of_many_candidates_one_is_elected(engine: Engine):
    for role in ("first", "second", "third"):
        barrier = threading.Barrier(6)

        def stand(number: int, role=role, barrier=barrier) -> bool:
            barrier.wait()
            return Election(engine, role, f"owner-{number}", 30).stand()

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(stand, range(6))) == 1


def test_a_role_is_kept_by_renewing_it(engine: Engine):
    mine, other = (Election(engine, "sweeper", name, 0.2) for name in "ab")
    for _ in range(6):
        assert mine.stand()
        assert not other.stand()
        time.sleep(0.05)
    deadline = time.monotonic() + 10
    while not other.stand():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not mine.stand()


def test_the_role_of_one_that_is_known_to_be_dead_is_free(engine: Engine):
    assert Election(engine, "sweeper", "dead", 30).stand()
    assert not Election(engine, "sweeper", "a", 30, lambda owner: False).stand()
    assert Election(engine, "sweeper", "b", 30, lambda owner: owner == "dead").stand()


def test_alive_are_those_seen_lately_that_were_not_told_to_stop(engine: Engine):
    for name in ("wrk_1", "wrk_2", "wrk_3"):
        fleet.heartbeat(engine, name, "host")
    fleet.stop(engine, "wrk_2")
    fleet.dismiss(engine, "wrk_3")
    fleet.heartbeat(engine, "wrk_1")
    assert [worker["id"] for worker in fleet.alive(engine, 15)] == ["wrk_1"]
    assert fleet.alive(engine, -1) == []


def test_a_worker_that_was_forgotten_returns(engine: Engine):
    fleet.heartbeat(engine, "wrk_1", "host")
    fleet.heartbeat(engine, "wrk_2")
    found = {worker["id"]: worker["host"] for worker in fleet.alive(engine, 15)}
    assert found == {"wrk_1": "host", "wrk_2": socket.gethostname()}


def test_a_worker_that_is_told_to_stop_before_it_was_seen_is_not_alive(engine: Engine):
    fleet.stop(engine, "wrk_1")
    assert fleet.alive(engine, 15) == []


def test_a_heartbeat_changes_nothing_else(engine: Engine):
    fleet.heartbeat(engine, "wrk_1", "host")
    fleet.stop(engine, "wrk_1")
    fleet.heartbeat(engine, "wrk_1", "another")
    assert fleet.alive(engine, 15) == []
