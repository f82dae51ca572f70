"""Executes a request with an Idempotency-Key only once, however often it is repeated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from app.contract.errors import InvalidRequestError, Problem
from app.services.backend import Backend
from app.storage import idempotency
from app.storage.idempotency import IdempotencyKey, Reservation

_MOST_CHARACTERS = 255


@dataclass(frozen=True)
class Caller:
    """The caller's API key and Idempotency-Key."""

    api_key_id: str = "anonymous"
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Claim:
    """Either the resource that the request `made` before, or the reservation to make it now."""

    made: str | None = None
    reservation: Reservation | None = None

    def complete(self, connection: Connection, resource_id: str) -> None:
        """Record the new resource, in the transaction that creates it."""
        if self.reservation is not None:
            idempotency.complete(connection, self.reservation, resource_id)


@contextmanager
def claim(backend: Backend, caller: Caller, endpoint: str, fingerprint: str) -> Iterator[Claim]:
    """Yield a request's claim on its key; any exception releases the key.

    Raises InvalidRequestError for an invalid key, and the errors of `idempotency.reserve`.
    """
    if caller.idempotency_key is None:
        yield Claim()
        return
    key = IdempotencyKey(caller.api_key_id, endpoint, _checked(caller.idempotency_key), fingerprint)
    found = idempotency.reserve(backend.engine, key, backend.settings.idempotency_seconds)
    if isinstance(found, str):
        yield Claim(made=found)
        return
    try:
        yield Claim(reservation=found)
    except BaseException:
        idempotency.release(backend.engine, found)
        raise


def _checked(key: str) -> str:
    if key and len(key) <= _MOST_CHARACTERS and key.isascii() and key.isprintable():
        return key
    message = f"Must be 1 to {_MOST_CHARACTERS} printable ASCII characters, such as a UUID."
    raise InvalidRequestError.of([Problem(message, "Idempotency-Key")])
