"""What every service works with: settings, database, queue, artifact store."""

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

# Rows are the truth: what is left out here is sent by the sweeper, or looked for by its readers.
_MOST_ERRANDS = 200
_ERRAND_SECONDS = 0.2
_LOG = logging.getLogger(__name__)
# What the database, its driver and the pool of connections raise.
DATABASE_ERRORS = (DBAPIError, TimeoutError)


@dataclass(frozen=True)
class Backend:
    """The settings and the rooms behind them; `queue` is None where no broker is set."""

    settings: Settings
    engine: Engine
    store: ArtifactStore
    queue: Queue | None
    errands: Errands
    readiness: Readiness

    def announce(self, kind: JobKind, job_id: str, merge_id: str) -> None:
        """Tell the workers of a queued job, and wake the readers of its merge's events.

        Call it after the commit: whatever fails here, the job is accepted. Nothing is lost
        without a broker (the sweeper sends it later) or a note (it is sent again).
        """
        if self.queue is not None:
            queue = self.queue
            self.errands.run(lambda: self._send(queue, kind, job_id, merge_id))

    def wake(self, merge_id: str) -> None:
        """Wake the readers of a merge's events; they look by themselves if this is lost."""
        if self.queue is not None:
            queue = self.queue
            self.errands.run(lambda: queue.wake(merge_id))

    def obstacle(self, rows: Iterable[RowMapping]) -> str | None:
        """Return what the service lacks to do those of these jobs that are queued, if anything."""
        queued = any(row["status"] == "queued" for row in rows)
        return self.readiness.obstacle() if queued else None

    def close(self) -> None:
        """Close the database's connections."""
        self.errands.close()
        self.engine.dispose()

    def _send(self, queue: Queue, kind: JobKind, job_id: str, merge_id: str) -> None:
        if queue.send(kind, job_id):
            try:
                leases.mark_sent(self.engine, kind, job_id)
            except SQLAlchemyError as error:
                _LOG.warning("%s %s was sent, but not noted as sent: %s", kind, job_id, error)
        queue.wake(merge_id)


class Errands:
    """Messages to the queue, sent by one thread in the background: hints, of which some may go."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="errands")
        self._places = threading.BoundedSemaphore(_MOST_ERRANDS)

    def run(self, errand: Callable[[], None]) -> None:
        """Run an errand soon; return when it is done, or after a moment: clients do not wait."""
        if not self._places.acquire(blocking=False):
            _LOG.debug("the queue is away, and too many messages wait for it: one is left out")
            return
        done = self._thread.submit(errand)
        done.add_done_callback(lambda _: self._places.release())
        wait([done], timeout=_ERRAND_SECONDS)

    def close(self) -> None:
        """Forget the errands that were not begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def open_backend(settings: Settings) -> Backend:
    """Connect to what the settings name, and bring the database's schema up to date."""
    engine = connect(settings.database)
    migrate(engine)
    queue = Queue(settings.broker) if settings.broker else None
    readiness = Readiness(settings, engine, queue)
    return Backend(settings, engine, ArtifactStore(settings.artifacts), queue, Errands(), readiness)


def database_problem(backend: Backend, error: Exception) -> AfluenteError | None:
    """Return the error that tells clients what the database lacks; None for a fault of ours."""
    why = reason(error)
    if why == DAMAGED:
        backend.readiness.note_damage()
    return None if why is None else NotReadyError(why)
