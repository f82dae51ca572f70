from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from app.storage import evaluations, merges
from app.storage.database import writing


def test_evaluations_asked_for_at_once_are_all_made(engine: Engine, merge_id: str):
    barrier = threading.Barrier(6)

    def ask(_: int) -> str:
        barrier.wait()
        with writing(engine) as connection:
            return evaluations.create(connection, merge_id, {"datasets": []})

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(ask, range(6)))
    assert {row["id"] for row in evaluations.of_merge(engine, merge_id)} == set(made)


def test_a_locked_merge_is_not_deleted_before_the_transaction_ends(engine: Engine, merge_id: str):
    locked, found = threading.Event(), []

    def delete() -> None:
        locked.wait()
        with writing(engine) as connection:
            merges.lock(connection, merge_id)
            found.append(merges.has_open_work(connection, merge_id))

    with ThreadPoolExecutor(1) as pool:
        with writing(engine) as connection:
            assert merges.lock(connection, merge_id) is not None
            deleting = pool.submit(delete)
            locked.set()
            evaluations.create(connection, merge_id, {"datasets": []})
            assert not found
        deleting.result()
    assert found == [True]
