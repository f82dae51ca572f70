"""A merge's events: an append-only log in the database. Redis only wakes its readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, func, insert, select

from app.storage.database import now, reading
from app.storage.tables import events, merges


def append(connection: Connection, merge_id: str, kind: str, data: Mapping[str, Any]) -> int:
    """Add an event within the caller's transaction and return its sequence number."""
    # The lock on the merge's row gives concurrent writers different numbers. `key_share`, since
    # writers may already hold the weak lock of a foreign key on the same row.
    connection.execute(
        select(merges.c.id).where(merges.c.id == merge_id).with_for_update(key_share=True)
    )
    last = select(func.coalesce(func.max(events.c.sequence), 0)).where(
        events.c.merge_id == merge_id
    )
    sequence = int(connection.execute(last).scalar_one()) + 1
    connection.execute(
        insert(events).values(
            merge_id=merge_id, sequence=sequence, type=kind, data=dict(data), created_at=now()
        )
    )
    return sequence


def age(connection: Connection, merge_id: str, kind: str) -> float:
    """Return the seconds since the merge's last event of this kind; infinity if there is none."""
    # abs: an event's time is ahead of the clock if the clock was set back.
    query = select(func.abs(now() - events.c.created_at)).where(
        events.c.merge_id == merge_id, events.c.type == kind
    )
    found = connection.execute(query.order_by(events.c.sequence.desc()).limit(1)).scalar()
    return float("inf") if found is None else float(found)


def read(engine: Engine, merge_id: str, *, after: int = 0, limit: int = 500) -> list[RowMapping]:
    """Return up to `limit` events with a sequence above `after`, oldest first."""
    query = (
        select(events)
        .where(events.c.merge_id == merge_id, events.c.sequence > after)
        .order_by(events.c.sequence)
        .limit(limit)
    )
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())
