"""The live workers, and the election of the one that sweeps."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.storage.change_tracker import ChangeTracker
from app.storage.database import now, reading, writing
from app.storage.tables import elections, workers

_FORGET_SECONDS = 3600.0
# Times further ahead of the clock than this are from before the clock was set back.
_AHEAD_SECONDS = 60.0


def heartbeat(engine: Engine, worker_id: str, host: str | None = None) -> None:
    """Record that the worker can take a job now; delete workers that were silent for an hour.

    `host` is the machine it runs on; by default, this one.
    """
    with writing(engine) as connection:
        silent = or_(
            workers.c.seen_at < now() - _FORGET_SECONDS, workers.c.seen_at > now() + _AHEAD_SECONDS
        )
        connection.execute(delete(workers).where(silent, workers.c.id != worker_id))
        _note(engine, connection, worker_id, host, seen_at=now())


def stop(engine: Engine, worker_id: str) -> None:
    """Tell the worker's children to return their job to the queue."""
    with writing(engine) as connection:
        _note(engine, connection, worker_id, None, stopping=True)


def dismiss(engine: Engine, worker_id: str) -> None:
    """Delete a worker that has stopped."""
    with writing(engine) as connection:
        connection.execute(delete(workers).where(workers.c.id == worker_id))


def forget(engine: Engine, host: str) -> None:
    """Delete the workers of a host; live ones reappear with their next heartbeat."""
    with writing(engine) as connection:
        connection.execute(delete(workers).where(workers.c.host == host))


def alive(engine: Engine, within_seconds: float) -> list[RowMapping]:
    """Return the workers with a heartbeat in this time that were not told to stop."""
    # abs: a time is ahead of the clock if the clock was set back.
    recent = func.abs(now() - workers.c.seen_at) < within_seconds
    query = select(workers).where(recent, workers.c.stopping.is_(False))
    with reading(engine) as connection:
        return list(connection.execute(query).mappings())


class Election:
    """A candidate for a role with one holder at a time; the holder renews it with `stand`."""

    def __init__(
        self,
        engine: Engine,
        role: str,
        owner: str,
        seconds: float,
        is_dead: Callable[[str], bool] = lambda owner: False,
    ) -> None:
        """`stand` takes the role from a holder that is dead or has not renewed for `seconds`."""
        self._engine, self._role, self._owner = engine, role, owner
        self._seconds, self._is_dead = seconds, is_dead
        self._tracker = ChangeTracker(seconds)

    def stand(self) -> bool:
        """Take or renew the role; return False while another holds it. Call it periodically."""
        mine = {"owner": self._owner, "expires_at": now() + self._seconds}
        with writing(self._engine) as connection:
            query = select(elections).where(elections.c.role == self._role).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None:
                first = connection.execute(
                    _dialect(self._engine)
                    .insert(elections)
                    .values(role=self._role, **mine)
                    .on_conflict_do_nothing()
                    .returning(elections.c.role)
                )
                return first.first() is not None
            if row.owner != self._owner:
                held = self._tracker.unchanged({self._role: (row.owner, row.expires_at)})
                if held[self._role] < self._seconds and not self._is_dead(row.owner):
                    return False
            connection.execute(
                update(elections).where(elections.c.role == self._role).values(**mine)
            )
            return True


def _note(
    engine: Engine, connection: Connection, worker_id: str, host: str | None, **values: Any
) -> None:
    """Update a worker's row, or insert it."""
    connection.execute(
        _dialect(engine)
        .insert(workers)
        .values(
            id=worker_id,
            host=host or socket.gethostname(),
            started_at=now(),
            **{"seen_at": now(), **values},
        )
        .on_conflict_do_update(index_elements=[workers.c.id], set_=values)
    )


def _dialect(engine: Engine) -> Any:
    """Return the module whose `insert` supports ON CONFLICT."""
    return postgresql if engine.dialect.name == "postgresql" else sqlite
