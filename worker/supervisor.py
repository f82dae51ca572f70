"""A worker: this process sweeps and supervises; its child is Celery's, and does the jobs.

The supervisor loads no torch and holds no job, so nothing that a job does can take the sweeper
down with it.
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
# Celery's loop beats every second; a busy machine may keep it from doing so for a while.
_DEAF_SECONDS = 8.0
# What Celery may take to start before its silence is worth a word: it imports torch.
_START_SECONDS = 60.0
# The tasks are imported first: `run` is for those that are known by then.
_CELERY = "import worker.tasks; from worker.celery_app import run; run()"


def main(settings: Settings) -> int:
    """Run one worker until SIGTERM or SIGINT; return the exit status."""
    if settings.broker is None:
        raise NotReadyError("AFLUENTE_BROKER_URL is not set; a worker needs a queue to work from.")
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
    beats = Beats()
    child = _celery(worker_id, settings, beats.writer)
    child.start()
    swept = threading.Thread(
        target=_sweep_until, args=(stopping, sweeper, worker_id, beats), name="sweeper", daemon=True
    )
    swept.start()
    while not stopping.wait(_TICK_SECONDS):
        beats.listen()
        news = child.watch()
        if news:
            _LOG.warning(news)
        reap_orphans([child])
    _LOG.info("stopping: the job under way goes back to the queue")
    fleet.stop(engine, worker_id)
    killed = stop([child])
    swept.join()
    fleet.dismiss(engine, worker_id)
    engine.dispose()
    return 1 if killed else 0


class Beats:
    """What the loop that takes the jobs says of itself: a byte a second through a pipe.

    A Celery that cannot start, has lost its broker or hangs is silent, however alive it looks.
    """

    def __init__(self) -> None:
        """Make the pipe; `writer` is for the process that beats."""
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._heard_at: float | None = None
        self._said_by = time.monotonic() + _START_SECONDS
        self._is_said = False

    def listen(self) -> None:
        """Take what has come; log once when jobs are no longer taken, and when they are again."""
        now = time.monotonic()
        try:
            heard = bool(os.read(self._reader, 65_536))
        except BlockingIOError:
            heard = False
        if heard:
            self._heard_at, self._said_by = now, now + _DEAF_SECONDS
            if self._is_said:
                self._is_said = False
                _LOG.warning("this worker takes jobs again")
        elif now > self._said_by and not self._is_said:
            self._is_said = True
            _LOG.error(
                "this worker takes no jobs: Celery does not start, or does not reach the queue; "
                "what it wrote above says why"
            )

    def are_recent(self) -> bool:
        """Return whether jobs are being taken."""
        return self._heard_at is not None and time.monotonic() - self._heard_at < _DEAF_SECONDS


def _celery(worker_id: str, settings: Settings, beats: int) -> Child:
    return Child(
        "celery",
        [sys.executable, "-P", "-c", _CELERY],
        settings.stop_seconds + _MARGIN_SECONDS,
        {"AFLUENTE_WORKER_ID": worker_id, "AFLUENTE_BEATS_DESCRIPTOR": str(beats)},
        inherited=(beats,),
    )


def _sweep_until(stopping: threading.Event, sweeper: Sweeper, worker_id: str, beats: Beats) -> None:
    due = time.monotonic()  # what a dead worker left may be waiting already
    takes_jobs, said = False, ""
    while not stopping.wait(_TICK_SECONDS):
        took_jobs, takes_jobs = takes_jobs, beats.are_recent()
        if time.monotonic() < due and takes_jobs == took_jobs:
            continue
        due = time.monotonic() + sweeper.settings.sweep_seconds
        try:
            if takes_jobs:
                fleet.seen(sweeper.engine, worker_id)
            elif took_jobs:
                fleet.dismiss(sweeper.engine, worker_id)
            sweeper.sweep()
            said = ""
        except SQLAlchemyError as error:
            why = reason(error) or str(error)
            if why != said:  # once, not every round
                _LOG.error("nothing is swept, and this worker is not seen: %s", why)
                _LOG.info("the database said: %s", error)
            said = why
        except Exception:  # noqa: BLE001 - the sweeper must outlive whatever it meets
            _LOG.exception("a sweep failed")
