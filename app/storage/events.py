"""The events of merges and studies: append-only logs in the database.

A log's `topic` is the merge or the study that it tells about. Redis only wakes the readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, delete, func, insert, select

from app.contract.identifiers import STUDY
from app.storage.database import now, reading
from app.storage.tables import events, merges, studies


def append(connection: Connection, topic: str, kind: str, data: Mapping[str, Any]) -> int:
    """Add an event within the caller's transaction and return its sequence number."""
    # The lock on the topic's row gives concurrent writers different numbers. `key_share`, since
    # writers may already hold the weak lock of a foreign key on the same row.
    table = studies if topic.startswith(STUDY) else merges
    connection.execute(
        select(table.c.id).where(table.c.id == topic).with_for_update(key_share=True)
    )
    last = select(func.coalesce(func.max(events.c.sequence), 0)).where(events.c.topic == topic)
    sequence = int(connection.execute(last).scalar_one()) + 1
    connection.execute(
        insert(events).values(
            topic=topic, sequence=sequence, type=kind, data=dict(data), created_at=now()
        )
    )
    return sequence


def age(connection: Connection, topic: str, kind: str) -> float:
    """Return the seconds since the topic's last event of this kind; infinity if there is none."""
    # abs: an event's time is ahead of the clock if the clock was set back.
    query = select(func.abs(now() - events.c.created_at)).where(
        events.c.topic == topic, events.c.type == kind
    )
    found = connection.execute(query.order_by(events.c.sequence.desc()).limit(1)).scalar()
    return float("inf") if found is None else float(found)


def read(engine: Engine, topic: str, *, after: int = 0, limit: int = 500) -> list[RowMapping]:
    """Return up to `limit` events with a sequence above `after`, oldest first."""
    query = (
        select(events)
        .where(events.c.topic == topic, events.c.sequence > after)
        .order_by(events.c.sequence)
        .limit(limit)
    )
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def remove(connection: Connection, topic: str) -> None:
    """Delete all events of a topic, in the caller's transaction."""
    connection.execute(delete(events).where(events.c.topic == topic))
