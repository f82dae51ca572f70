"""A worker: this process sweeps and supervises; its child is Celery's, and does the jobs.

The supervisor loads no torch and holds no job, so nothing that a job does can take the sweeper
down with it.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from app.contract.errors import NotReadyError
from app.contract.identifiers import WORKER, new_id
from app.contract.settings import Settings
from app.storage import fleet
from app.storage.artifacts import ArtifactStore
from app.storage.database import connect, migrate
from app.storage.queue import Queue
from worker.processes.children import Child, stop
from worker.sweeper import Sweeper

_LOG = logging.getLogger(__name__)
_TICK_SECONDS = 0.25
_MARGIN_SECONDS = 3.0


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
    sweeper = Sweeper(engine, queue, store, settings, worker_id)
    child = _celery(worker_id, settings)
    fleet.enlist(engine, worker_id, socket.gethostname())
    child.start()
    swept = threading.Thread(
        target=_sweep_until, args=(stopping, sweeper, worker_id), name="sweeper", daemon=True
    )
    swept.start()
    while not stopping.wait(_TICK_SECONDS):
        news = child.watch()
        if news:
            _LOG.warning(news)
    _LOG.info("stopping: the job under way goes back to the queue")
    fleet.stop(engine, worker_id)
    killed = stop([child])
    swept.join()
    fleet.dismiss(engine, worker_id)
    engine.dispose()
    return 1 if killed else 0


def _celery(worker_id: str, settings: Settings) -> Child:
    command = [sys.executable, "-P", "-m", "celery", "--quiet", "-A", "worker.celery_app", "worker"]
    command += ["--pool", "prefork", "--concurrency", "1", "--max-tasks-per-child", "1"]
    command += ["--loglevel", settings.log_level, "--hostname", f"{worker_id}@%h"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return Child(
        "celery",
        command,
        settings.stop_seconds + _MARGIN_SECONDS,
        {"AFLUENTE_WORKER_ID": worker_id},
    )


def _sweep_until(stopping: threading.Event, sweeper: Sweeper, worker_id: str) -> None:
    wait_seconds = 0.0  # what a dead worker left may be waiting already
    while not stopping.wait(wait_seconds):
        wait_seconds = sweeper.settings.sweep_seconds
        try:
            fleet.seen(sweeper.engine, worker_id)
            sweeper.sweep()
        except SQLAlchemyError as error:
            _LOG.warning("the database did not answer: %s", error)
        except Exception:  # noqa: BLE001 - the sweeper must outlive whatever it meets
            _LOG.exception("a sweep failed")
