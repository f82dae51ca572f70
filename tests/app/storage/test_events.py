from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from app.storage import events
from app.storage.database import writing
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
