"""The Celery side of a worker: a parent that never touches CUDA, one fresh child a task.

Started by the supervisor as `celery -A worker.celery_app worker`; takes its settings from the
environment, as every process does.
"""

from __future__ import annotations

import os
import signal
import warnings
from typing import Any

from billiard.exceptions import WorkerLostError as ChildLostError
from celery.signals import task_failure, worker_process_init, worker_ready

from app.contract.settings import Settings
from app.storage.database import connect
from app.storage.leases import abandon
from app.storage.queue import celery_app
from worker.processes.launch import die_with_parent

_REPLACE_SECONDS = 0.25
SETTINGS = Settings()
WORKER_ID = os.environ.get("AFLUENTE_WORKER_ID", "")

if SETTINGS.broker is None:
    raise SystemExit("AFLUENTE_BROKER_URL is not set; a worker needs a queue (or use afluente up).")

# Celery warns root on a terminal; containers run this as nobody special, see the Dockerfile.
warnings.filterwarnings("ignore", "You're running the worker with superuser privileges")

app = celery_app(SETTINGS.broker)
# Importing the tasks imports torch in the parent, once: a fresh child a task then costs a fork.
app.conf.update(imports=("worker.tasks",))


@worker_process_init.connect
def _die_with_the_parent(**_: Any) -> None:
    """A child whose parent is gone has no business going on, however that came about."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()


@task_failure.connect
def _give_up_lease(exception: BaseException | None = None, **_: Any) -> None:
    """End the lease of a child that died, in the parent: nobody waits for it to run out."""
    if not isinstance(exception, ChildLostError):
        return
    engine = connect(SETTINGS.database)
    try:
        abandon(engine, f"{WORKER_ID}:", killed="signal 9" in str(exception))
    finally:
        engine.dispose()


@worker_ready.connect
def _replace_children_at_once(sender: Any, **_: Any) -> None:
    """Look for a child that has ended several times a second, not every five seconds.

    Celery is told when a child closes its files, which may be before it can be collected; it would
    then look again after five seconds, and the next job would wait for as long.
    """
    pool = sender.pool._pool
    sender.hub.call_repeatedly(_REPLACE_SECONDS, pool.maintain_pool)
