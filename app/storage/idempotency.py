"""Idempotency keys: the second request with a key gets what the first one made."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from app.contract.errors import GoneError, IdempotencyMismatchError
from app.storage.database import now
from app.storage.tables import evaluations, idempotency_keys, merges


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's key, unique for its API key and endpoint, with the request's fingerprint."""

    api_key_id: str
    endpoint: str
    key: str
    fingerprint: str


def find(connection: Connection, key: IdempotencyKey, keep_seconds: float) -> str | None:
    """Return the identifier of what this request made before, or None.

    Raises IdempotencyMismatchError for another request under the same key, and GoneError when
    what it made has been deleted.
    """
    table = idempotency_keys
    connection.execute(delete(table).where(table.c.created_at < now() - keep_seconds))
    row = connection.execute(select(table).where(*_match(key))).one_or_none()
    if row is None:
        return None
    if row.fingerprint != key.fingerprint:
        raise IdempotencyMismatchError(
            f'Idempotency-Key "{key.key}" was used for a different request before; '
            "send a new key with a new request."
        )
    resource = str(row.resource_id)
    for made in (merges, evaluations):
        if connection.execute(select(made.c.id).where(made.c.id == resource)).first():
            return resource
    raise GoneError(f"The request with this Idempotency-Key made {resource}, which was deleted.")


def record(connection: Connection, key: IdempotencyKey, resource_id: str) -> None:
    """Remember what the request made, in the transaction that made it."""
    connection.execute(
        insert(idempotency_keys).values(
            api_key_id=key.api_key_id,
            endpoint=key.endpoint,
            key=key.key,
            fingerprint=key.fingerprint,
            resource_id=resource_id,
            created_at=now(),
        )
    )


def _match(key: IdempotencyKey) -> tuple[ColumnElement[bool], ...]:
    table = idempotency_keys.c
    return (
        table.api_key_id == key.api_key_id,
        table.endpoint == key.endpoint,
        table.key == key.key,
    )
