from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Engine, update

from app.contract.errors import GoneError, IdempotencyConflictError, IdempotencyMismatchError
from app.storage import idempotency, merges, studies
from app.storage.database import now, writing
from app.storage.idempotency import IdempotencyKey, Reservation
from app.storage.tables import idempotency_keys
from tests.app.storage.conftest import RECIPE, SOURCES

KEY = IdempotencyKey("key_1", "POST /merges", "abc", "f" * 64)
DAY = 86_400.0


def reserve(engine: Engine, key: IdempotencyKey = KEY) -> Reservation | str:
    return idempotency.reserve(engine, key, DAY)


def make(engine: Engine, reservation: Reservation | str) -> str:
    assert isinstance(reservation, Reservation)
    with writing(engine) as connection:
        merge_id = merges.create(
            connection, name=None, request={}, recipe=RECIPE, sources=SOURCES, warnings=()
        )
        idempotency.complete(connection, reservation, merge_id)
    return merge_id


def test_the_second_request_gets_what_the_first_made(engine: Engine):
    made = make(engine, reserve(engine))
    assert reserve(engine) == made


def test_the_second_request_for_a_study_gets_the_first_ones(engine: Engine):
    key = replace(KEY, endpoint="POST /studies")
    first = reserve(engine, key)
    assert isinstance(first, Reservation)
    with writing(engine) as connection:
        made = studies.create(connection, name=None, request={}, sources={}, trials=1, seconds=None)
        idempotency.complete(connection, first, made)
    assert reserve(engine, key) == made


@pytest.mark.parametrize("change", ["api_key_id", "endpoint", "key"])
def test_keys_are_apart_by_caller_endpoint_and_name(engine: Engine, change: str):
    make(engine, reserve(engine))
    assert isinstance(reserve(engine, replace(KEY, **{change: "other"})), Reservation)


def test_another_request_under_the_key_is_refused(engine: Engine):
    make(engine, reserve(engine))
    with pytest.raises(IdempotencyMismatchError):
        reserve(engine, replace(KEY, fingerprint="0" * 64))


def test_what_was_deleted_is_gone(engine: Engine):
    made = make(engine, reserve(engine))
    with writing(engine) as connection:
        merges.remove(connection, made)
    with pytest.raises(GoneError, match=made):
        reserve(engine)


def test_an_open_request_holds_its_key(engine: Engine):
    reserve(engine)
    with pytest.raises(IdempotencyConflictError):
        reserve(engine)


def test_a_refused_request_gives_its_key_back(engine: Engine):
    first = reserve(engine)
    assert isinstance(first, Reservation)
    idempotency.release(engine, first)
    other = replace(KEY, fingerprint="0" * 64)
    assert isinstance(reserve(engine, other), Reservation)


def test_a_dead_request_loses_its_key_to_the_next_and_can_no_longer_use_it(engine: Engine):
    dead = reserve(engine)
    assert isinstance(dead, Reservation)
    dead = replace(dead, reserved_at=_age(engine, 120))
    living = reserve(engine)
    with pytest.raises(IdempotencyConflictError):
        make(engine, dead)
    idempotency.release(engine, dead)
    assert reserve_again(engine) == "open"
    assert make(engine, living) == reserve(engine)


def reserve_again(engine: Engine) -> str:
    with pytest.raises(IdempotencyConflictError):
        reserve(engine)
    return "open"


def test_a_key_is_forgotten_after_its_time(engine: Engine):
    make(engine, reserve(engine))
    _age(engine, DAY + 60)
    assert isinstance(reserve(engine), Reservation)


def _age(engine: Engine, seconds: float) -> float:
    with writing(engine) as connection:
        return float(
            connection.execute(
                update(idempotency_keys)
                .values(created_at=now() - seconds)
                .returning(idempotency_keys.c.created_at)
            ).scalar_one()
        )


def test_of_many_at_once_one_makes_something(engine: Engine):
    barrier = threading.Barrier(8)

    def attempt(_: int) -> str | None:
        barrier.wait()
        try:
            found = reserve(engine)
        except IdempotencyConflictError:
            return None
        return found if isinstance(found, str) else make(engine, found)

    with ThreadPoolExecutor(8) as pool:
        outcomes = set(pool.map(attempt, range(8)))
    assert len(outcomes - {None}) == 1
    assert len(merges.page(engine)) == 1
