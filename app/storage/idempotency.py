"""Idempotency keys: a repeated request gets the resource that the first one created."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Engine, Row, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.contract.errors import GoneError, IdempotencyConflictError, IdempotencyMismatchError
from app.storage.database import now, writing
from app.storage.tables import evaluations, idempotency_keys, merges, studies

# A request open for longer than this died with its process; another may take its key.
_DEAD_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's key with its API key, endpoint and the request's fingerprint."""

    api_key_id: str
    endpoint: str
    key: str
    fingerprint: str


@dataclass(frozen=True)
class Reservation:
    """The right to answer for a key, since `reserved_at`."""

    key: IdempotencyKey
    reserved_at: float


def reserve(engine: Engine, key: IdempotencyKey, keep_seconds: float) -> Reservation | str:
    """Return a reservation, or the identifier of the resource that this request created before.

    Raises IdempotencyMismatchError for a different request under the same key, GoneError if the
    resource has been deleted, and IdempotencyConflictError while the first request is open.
    """
    table = idempotency_keys
    with writing(engine) as connection:
        moment = float(connection.execute(select(now())).scalar_one())
        connection.execute(delete(table).where(table.c.created_at < moment - keep_seconds))
        if _insert(engine, connection, key, moment):
            return Reservation(key, moment)
        row = connection.execute(select(table).where(*_match(key)).with_for_update()).one_or_none()
        if row is not None and row.resource_id is not None:
            return _created(connection, key, row)
        # abs: a time is ahead of the clock if the clock was set back.
        if row is not None and abs(moment - row.created_at) > _DEAD_AFTER_SECONDS:
            connection.execute(
                update(table)
                .where(*_match(key))
                .values(fingerprint=key.fingerprint, created_at=moment)
            )
            return Reservation(key, moment)
    raise _still_open(key)


def complete(connection: Connection, reservation: Reservation, resource_id: str) -> None:
    """Record the resource that the request created, in the same transaction.

    Raises IdempotencyConflictError if another request has taken the reservation.
    """
    done = connection.execute(
        update(idempotency_keys).where(*_held(reservation)).values(resource_id=resource_id)
    )
    if done.rowcount != 1:
        raise _still_open(reservation.key)


def release(engine: Engine, reservation: Reservation) -> None:
    """Delete the reservation of a refused request; does nothing if the request is complete."""
    with writing(engine) as connection:
        connection.execute(delete(idempotency_keys).where(*_held(reservation)))


def _insert(engine: Engine, connection: Connection, key: IdempotencyKey, moment: float) -> bool:
    dialect = postgresql if engine.dialect.name == "postgresql" else sqlite
    done = connection.execute(
        dialect.insert(idempotency_keys)
        .values(
            api_key_id=key.api_key_id,
            endpoint=key.endpoint,
            key=key.key,
            fingerprint=key.fingerprint,
            created_at=moment,
        )
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )
    return done.first() is not None


def _created(connection: Connection, key: IdempotencyKey, row: Row[tuple[object, ...]]) -> str:
    if row.fingerprint != key.fingerprint:
        raise IdempotencyMismatchError(
            f'Idempotency-Key "{key.key}" was used for a different request before; '
            "send a new key with a new request."
        )
    resource = str(row.resource_id)
    for table in (merges, evaluations, studies):
        if connection.execute(select(table.c.id).where(table.c.id == resource)).first():
            return resource
    raise GoneError(
        f"The request with this Idempotency-Key created {resource}, which has been deleted."
    )


def _still_open(key: IdempotencyKey) -> IdempotencyConflictError:
    return IdempotencyConflictError(
        f'The first request with Idempotency-Key "{key.key}" is still being processed; '
        "repeat this one in a moment."
    )


def _held(reservation: Reservation) -> tuple[ColumnElement[bool], ...]:
    table = idempotency_keys.c
    return (
        *_match(reservation.key),
        table.resource_id.is_(None),
        table.created_at == reservation.reserved_at,
    )


def _match(key: IdempotencyKey) -> tuple[ColumnElement[bool], ...]:
    table = idempotency_keys.c
    return (
        table.api_key_id == key.api_key_id,
        table.endpoint == key.endpoint,
        table.key == key.key,
    )
