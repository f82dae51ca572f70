"""API keys: shown once, stored as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, RowMapping, insert, select, update

from app.contract.identifiers import API_KEY, new_id
from app.storage.database import now, reading, writing
from app.storage.tables import api_keys

SCOPES = ("read", "write", "admin")
_PREFIX = "afl_"


@dataclass(frozen=True)
class ApiKey:
    """An API key's identifier, name and scopes."""

    id: str
    name: str
    scopes: frozenset[str]

    def allows(self, scope: str) -> bool:
        """Return whether the key has the scope; `admin` includes all, `write` includes `read`."""
        if "admin" in self.scopes or scope in self.scopes:
            return True
        return scope == "read" and "write" in self.scopes


def create(engine: Engine, name: str, scopes: Sequence[str]) -> tuple[str, str]:
    """Store a new key; return its identifier and the secret, which is not stored."""
    key_id, secret = new_id(API_KEY), _PREFIX + secrets.token_urlsafe(32)
    with writing(engine) as connection:
        connection.execute(
            insert(api_keys).values(
                id=key_id,
                name=name,
                digest=_digest(secret),
                scopes=sorted(scopes),
                created_at=now(),
            )
        )
    return key_id, secret


def find(engine: Engine, secret: str) -> ApiKey | None:
    """Return the key with this secret, or None if it is unknown or revoked."""
    digest = _digest(secret)
    query = select(api_keys).where(api_keys.c.digest == digest, api_keys.c.revoked_at.is_(None))
    with reading(engine) as connection:
        row = connection.execute(query).one_or_none()
    if row is None or not hmac.compare_digest(row.digest, digest):
        return None
    return ApiKey(row.id, row.name, frozenset(row.scopes))


def any_ever(engine: Engine) -> bool:
    """Return whether a key was ever created; from then on every call needs one."""
    with reading(engine) as connection:
        return connection.execute(select(api_keys.c.id).limit(1)).first() is not None


def any_active(engine: Engine) -> bool:
    """Return whether an unrevoked key exists."""
    query = select(api_keys.c.id).where(api_keys.c.revoked_at.is_(None)).limit(1)
    with reading(engine) as connection:
        return connection.execute(query).first() is not None


def every(engine: Engine) -> list[RowMapping]:
    """Return all keys, oldest first, without their digests."""
    columns = [column for column in api_keys.c if column.name != "digest"]
    with reading(engine) as connection:
        query = select(*columns).order_by(api_keys.c.created_at)
        return list(connection.execute(query).mappings())


def revoke(engine: Engine, key_id: str) -> bool:
    """Revoke a key for good; return False if no such active key exists."""
    with writing(engine) as connection:
        done = connection.execute(
            update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=now())
        )
    return done.rowcount == 1


def _digest(secret: str) -> str:
    # No slow hash needed: 256 random bits cannot be guessed.
    return hashlib.sha256(secret.encode()).hexdigest()
