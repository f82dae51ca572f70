"""The supervisor of a worker: sweeps, and runs Celery, which runs the jobs, as a child process.

The supervisor loads no torch and runs no job, so no job can crash it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from app.contract.errors import NotReadyError
from app.contract.identifiers import WORKER, new_id
from app.contract.settings import Settings
from app.storage import fleet
from app.storage.artifacts import ArtifactStore
from app.storage.database import connect, migrate, reason
from app.storage.queue import Queue
from worker.processes.children import Child, reap_orphans, stop
from worker.processes.owners import describe_process
from worker.sweeper import Sweeper

_LOG = logging.getLogger(__name__)
_TICK_SECONDS = 0.25
_MARGIN_SECONDS = 3.0
# Celery's loop beats every second, or less often on a busy machine.
_SILENT_SECONDS = 8.0
# Celery may take this long to start, since it imports torch.
_START_SECONDS = 60.0
# `run` only knows the tasks imported before.
_CELERY = "import worker.tasks; from worker.celery_app import run; run()"


def main(settings: Settings) -> int:
    """Run one worker until SIGTERM or SIGINT; return the exit status."""
    if settings.broker is None:
        raise NotReadyError("AFLUENTE_BROKER_URL is not set; a worker needs a queue.")
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    stopping = threading.Event()

    def stop_soon(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_soon)
    worker_id = new_id(WORKER)
    engine = connect(settings.database)
    migrate(engine)
    queue, store = Queue(settings.broker), ArtifactStore(settings.artifacts)
    sweeper = Sweeper(engine, queue, store, settings, describe_process(worker_id))
    beats = Heartbeats()
    child = _celery(worker_id, settings, beats.writer)
    child.start()
    swept = threading.Thread(
        target=_sweep_until, args=(stopping, sweeper, worker_id, beats), name="sweeper", daemon=True
    )
    swept.start()
    while not stopping.wait(_TICK_SECONDS):
        beats.read()
        news = child.watch()
        if news:
            _LOG.warning(news)
        reap_orphans([child])
    _LOG.info("stopping: the running job goes back to the queue")
    fleet.stop(engine, worker_id)
    killed = stop([child])
    swept.join()
    fleet.dismiss(engine, worker_id)
    engine.dispose()
    return 1 if killed else 0


class Heartbeats:
    """Heartbeats of Celery's consumer loop: a byte per second through a pipe.

    A Celery process that cannot start, has lost its broker or hangs sends none.
    """

    def __init__(self) -> None:
        """Create the pipe; `writer` is for the Celery process."""
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._last_at: float | None = None
        self._deadline = time.monotonic() + _START_SECONDS
        self._is_logged = False

    def read(self) -> None:
        """Read new heartbeats; log once when they stop, and once when they resume."""
        now = time.monotonic()
        try:
            received = bool(os.read(self._reader, 65_536))
        except BlockingIOError:
            received = False
        if received:
            self._last_at, self._deadline = now, now + _SILENT_SECONDS
            if self._is_logged:
                self._is_logged = False
                _LOG.warning("this worker takes jobs again")
        elif now > self._deadline and not self._is_logged:
            self._is_logged = True
            _LOG.error(
                "this worker takes no jobs: Celery does not start, or does not reach the queue; "
                "see its output above"
            )

    def are_recent(self) -> bool:
        """Return whether Celery takes jobs."""
        return self._last_at is not None and time.monotonic() - self._last_at < _SILENT_SECONDS


def _celery(worker_id: str, settings: Settings, beats: int) -> Child:
    return Child(
        "celery",
        [sys.executable, "-P", "-c", _CELERY],
        settings.stop_seconds + _MARGIN_SECONDS,
        {"AFLUENTE_WORKER_ID": worker_id, "AFLUENTE_BEATS_DESCRIPTOR": str(beats)},
        inherited=(beats,),
    )


def _sweep_until(
    stopping: threading.Event, sweeper: Sweeper, worker_id: str, beats: Heartbeats
) -> None:
    due = time.monotonic()  # at once: a dead worker's jobs may be waiting
    takes_jobs, logged = False, ""
    while not stopping.wait(_TICK_SECONDS):
        took_jobs, takes_jobs = takes_jobs, beats.are_recent()
        if time.monotonic() < due and takes_jobs == took_jobs:
            continue
        due = time.monotonic() + sweeper.settings.sweep_seconds
        try:
            if takes_jobs:
                fleet.heartbeat(sweeper.engine, worker_id)
            elif took_jobs:
                fleet.dismiss(sweeper.engine, worker_id)
            sweeper.sweep()
            logged = ""
        except SQLAlchemyError as error:
            why = reason(error) or str(error)
            if why != logged:  # once, not every round
                _LOG.error("cannot sweep or send heartbeats: %s", why)
                _LOG.info("the database's error: %s", error)
            logged = why
        except Exception:  # noqa: BLE001 - the sweeper must survive any error
            _LOG.exception("a sweep failed")
