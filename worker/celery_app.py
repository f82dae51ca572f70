"""The Celery side of a worker: a parent that never touches CUDA, one fresh child a task.

Started by the supervisor as a process of its own, which imports the tasks (and so torch, once: a
fresh child a task costs a fork) and calls `run`. Takes its settings from the environment, as every
process does.
"""

from __future__ import annotations

import os
import signal
import warnings
from contextlib import suppress
from functools import cache
from typing import Any

from billiard.exceptions import WorkerLostError as ChildLostError
from celery.signals import task_failure, worker_process_init, worker_ready

from app.contract.settings import Settings
from app.storage.database import connect
from app.storage.leases import abandon
from app.storage.queue import celery_app
from worker.processes.launch import die_with_parent

_REPLACE_SECONDS = 0.25
_BEAT_SECONDS = 1.0
SETTINGS = Settings()
WORKER_ID = os.environ.get("AFLUENTE_WORKER_ID", "")
# Where the supervisor listens for this process's beats, if one started it.
_BEATS = int(os.environ.get("AFLUENTE_BEATS_DESCRIPTOR", "-1"))

if SETTINGS.broker is None:
    raise SystemExit("AFLUENTE_BROKER_URL is not set; a worker needs a queue (or use afluente up).")

# Celery warns root on a terminal; containers run this as nobody special, see the Dockerfile.
warnings.filterwarnings("ignore", "You're running the worker with superuser privileges")

app = celery_app(SETTINGS.broker)


def run() -> None:
    """Do the tasks that have been imported until SIGTERM, then exit."""
    celery = app.Worker(
        hostname=f"{WORKER_ID}@{os.uname().nodename}",
        loglevel=SETTINGS.log_level,
        pool_cls="prefork",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    celery.start()
    raise SystemExit(celery.exitcode)


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
def _on_ready(sender: Any, **_: Any) -> None:
    """Start what the consumer's loop does from time to time.

    The signal comes again after a lost connection, but the timers are those of before: they stand
    still while there is none.
    """
    _set_timers(sender.hub, sender.pool)


@cache
def _set_timers(hub: Any, pool: Any) -> None:
    # Celery is told when a child closes its files, which may be before it can be collected; it
    # would then look again after five seconds, and the next job would wait for as long.
    hub.call_repeatedly(_REPLACE_SECONDS, pool._pool.maintain_pool)
    if _BEATS >= 0:
        os.set_blocking(_BEATS, False)
        hub.call_repeatedly(_BEAT_SECONDS, _beat)


def _beat() -> None:
    """Tell the supervisor that this loop goes round: jobs are taken."""
    with suppress(BlockingIOError):
        os.write(_BEATS, b".")
