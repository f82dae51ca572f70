"""The backend of all services: settings, database, queue, artifact store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from sqlalchemy import Engine, RowMapping
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, TimeoutError

from app.contract.errors import AfluenteError, NotReadyError
from app.contract.settings import Settings
from app.services.health import Readiness
from app.storage import leases
from app.storage.artifacts import ArtifactStore
from app.storage.database import DAMAGED, connect, migrate, reason
from app.storage.leases import JobKind
from app.storage.queue import Queue

# Messages beyond this are dropped: the sweeper sends them later, and event readers poll.
_MOST_PENDING = 200
_SEND_SECONDS = 0.2
_LOG = logging.getLogger(__name__)
# Raised by the database, its driver and the connection pool.
DATABASE_ERRORS = (DBAPIError, TimeoutError)


@dataclass(frozen=True)
class Backend:
    """Settings, and connections made from them; `queue` is None if no broker is set."""

    settings: Settings
    engine: Engine
    store: ArtifactStore
    queue: Queue | None
    sender: BackgroundSender
    readiness: Readiness

    def announce(self, kind: JobKind, job_id: str, merge_id: str) -> None:
        """Send a queued job's message, and wake the readers of its merge's events.

        Call it after the commit: the job is accepted even if this fails, since the sweeper sends
        messages that are missing.
        """
        if self.queue is not None:
            queue = self.queue
            self.sender.run(lambda: self._send(queue, kind, job_id, merge_id))

    def wake(self, merge_id: str) -> None:
        """Wake the readers of a merge's events; they also poll, in case this is lost."""
        if self.queue is not None:
            queue = self.queue
            self.sender.run(lambda: queue.wake(merge_id))

    def obstacle(self, rows: Iterable[RowMapping]) -> str | None:
        """Return why queued jobs among these cannot run now; None if they can or none is queued."""
        queued = any(row["status"] == "queued" for row in rows)
        return self.readiness.obstacle() if queued else None

    def close(self) -> None:
        """Close the database's connections."""
        self.sender.close()
        self.engine.dispose()

    def _send(self, queue: Queue, kind: JobKind, job_id: str, merge_id: str) -> None:
        if queue.send(kind, job_id):
            try:
                leases.mark_sent(self.engine, kind, job_id)
            except SQLAlchemyError as error:
                _LOG.warning("%s %s was sent, but not recorded as sent: %s", kind, job_id, error)
        queue.wake(merge_id)


class BackgroundSender:
    """Sends messages to the queue from a background thread; drops some if it cannot keep up."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sender")
        self._places = threading.BoundedSemaphore(_MOST_PENDING)

    def run(self, send: Callable[[], None]) -> None:
        """Call `send` in the background; return when it is done, or after a moment."""
        if not self._places.acquire(blocking=False):
            _LOG.debug("too many messages are waiting for the queue: one was dropped")
            return
        done = self._thread.submit(send)
        done.add_done_callback(lambda _: self._places.release())
        wait([done], timeout=_SEND_SECONDS)

    def close(self) -> None:
        """Drop the messages that were not started."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def open_backend(settings: Settings) -> Backend:
    """Return a backend for the settings, with the database's schema up to date."""
    engine = connect(settings.database)
    migrate(engine)
    queue = Queue(settings.broker) if settings.broker else None
    readiness = Readiness(settings, engine, queue)
    store = ArtifactStore(settings.artifacts)
    return Backend(settings, engine, store, queue, BackgroundSender(), readiness)


def database_problem(backend: Backend, error: Exception) -> AfluenteError | None:
    """Return the client's error for a failing database; None if our query is at fault."""
    why = reason(error)
    if why == DAMAGED:
        backend.readiness.note_damage()
    return None if why is None else NotReadyError(why)
