from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from sqlalchemy import Engine, insert

from app.contract.identifiers import EVALUATION, new_id
from app.storage import events
from app.storage.database import now, writing
from app.storage.tables import evaluations
from tests.app.storage.conftest import make_merge


def test_concurrent_writers_number_events_without_gaps(engine: Engine):
    ids = [make_merge(engine) for _ in range(2)]

    def add(number: int) -> None:
        with writing(engine) as connection:
            events.append(connection, ids[number % 2], "progress", {"done": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(60)))
    for position, merge_id in enumerate(ids):
        rows = events.read(engine, merge_id)
        assert [row["sequence"] for row in rows] == list(range(1, 32))
        done = {row["data"]["done"] for row in rows[1:]}
        assert done == set(range(position, 60, 2))


def test_reading_resumes_after_any_event(engine: Engine, merge_id: str):
    with writing(engine) as connection:
        for number in range(9):
            events.append(connection, merge_id, "progress", {"done": number})
    for after in range(11):
        found = [row["sequence"] for row in events.read(engine, merge_id, after=after, limit=4)]
        assert found == list(range(after + 1, 11))[:4]


def test_writers_that_refer_to_the_merge_already_do_not_deadlock(engine: Engine, merge_id: str):
    barrier = threading.Barrier(2)

    def add(_: int) -> None:
        with writing(engine) as connection:
            connection.execute(
                insert(evaluations).values(
                    id=new_id(EVALUATION), merge_id=merge_id, status="queued", spec={},
                    created_at=now(),
                )
            )  # fmt: skip
            with suppress(threading.BrokenBarrierError):  # SQLite has one writer at a time
                barrier.wait(1)
            events.append(connection, merge_id, "evaluation", {})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add, range(2)))
    assert [row["sequence"] for row in events.read(engine, merge_id)] == [1, 2, 3]
