"""The workers that are alive, and the election of the one whose sweeper sweeps."""

from __future__ import annotations

import socket
from typing import Any

from sqlalchemy import Engine, RowMapping, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.storage.database import now, reading, writing
from app.storage.tables import elections, workers

_FORGET_SECONDS = 3600.0


def enlist(engine: Engine, worker_id: str, host: str) -> None:
    """Note that a worker has started; forget those that have been silent for an hour."""
    with writing(engine) as connection:
        connection.execute(delete(workers).where(workers.c.seen_at < now() - _FORGET_SECONDS))
        connection.execute(
            insert(workers).values(id=worker_id, host=host, started_at=now(), seen_at=now())
        )


def seen(engine: Engine, worker_id: str, host: str | None = None) -> None:
    """Note that the worker is alive; one that was forgotten is enlisted again.

    `host` is where it runs: this machine, if not given.
    """
    with writing(engine) as connection:
        connection.execute(
            _dialect(engine)
            .insert(workers)
            .values(
                id=worker_id, host=host or socket.gethostname(), started_at=now(), seen_at=now()
            )
            .on_conflict_do_update(index_elements=[workers.c.id], set_={"seen_at": now()})
        )


def stop(engine: Engine, worker_id: str) -> None:
    """Tell the worker's children to put their job back."""
    with writing(engine) as connection:
        connection.execute(update(workers).where(workers.c.id == worker_id).values(stopping=True))


def dismiss(engine: Engine, worker_id: str) -> None:
    """Forget a worker that has stopped."""
    with writing(engine) as connection:
        connection.execute(delete(workers).where(workers.c.id == worker_id))


def alive(engine: Engine, within_seconds: float) -> list[RowMapping]:
    """Return the workers seen this recently that were not told to stop."""
    query = select(workers).where(
        workers.c.seen_at > now() - within_seconds, workers.c.stopping.is_(False)
    )
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


def elect(engine: Engine, role: str, owner: str, seconds: float) -> bool:
    """Take or keep a role until `seconds` from now; False while another has it."""
    with writing(engine) as connection:
        mine = connection.execute(
            update(elections)
            .where(
                elections.c.role == role,
                or_(elections.c.owner == owner, elections.c.expires_at < now()),
            )
            .values(owner=owner, expires_at=now() + seconds)
        )
        if mine.rowcount == 1:
            return True
        first = connection.execute(
            _dialect(engine)
            .insert(elections)
            .values(role=role, owner=owner, expires_at=now() + seconds)
            .on_conflict_do_nothing()
            .returning(elections.c.role)
        )
        return first.first() is not None


def _dialect(engine: Engine) -> Any:
    """Return the module whose `insert` knows ON CONFLICT."""
    return postgresql if engine.dialect.name == "postgresql" else sqlite
