"""The Celery process of a worker: a parent that never touches CUDA, and a fresh child per task.

The supervisor starts it as a process that imports the tasks (and so torch, once, so that a child
costs only a fork) and calls `run`. Settings come from the environment.
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
# The supervisor's pipe for heartbeats, if a supervisor started this process.
_BEATS = int(os.environ.get("AFLUENTE_BEATS_DESCRIPTOR", "-1"))

if SETTINGS.broker is None:
    raise SystemExit("AFLUENTE_BROKER_URL is not set; a worker needs a queue (or use afluente up).")

# Celery warns if run as root; containers do not (see the Dockerfile).
warnings.filterwarnings("ignore", "You're running the worker with superuser privileges")

app = celery_app(SETTINGS.broker)


def run() -> None:
    """Run the imported tasks until SIGTERM, then exit."""
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
    """Make a child end with its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()


@task_failure.connect
def _give_up_lease(exception: BaseException | None = None, **_: Any) -> None:
    """Expire the leases of a child that died, so that nobody waits for them."""
    if not isinstance(exception, ChildLostError):
        return
    engine = connect(SETTINGS.database)
    try:
        abandon(engine, f"{WORKER_ID}:", killed="signal 9" in str(exception))
    finally:
        engine.dispose()


@worker_ready.connect
def _on_ready(sender: Any, **_: Any) -> None:
    """Set the timers of the consumer's loop, once.

    The signal is sent again after a lost connection, but the timers persist.
    """
    _set_timers(sender.hub, sender.pool)


@cache
def _set_timers(hub: Any, pool: Any) -> None:
    # Celery notices that a child closed its files, perhaps before the child can be collected, and
    # would then check again only after five seconds, while the next job waits.
    hub.call_repeatedly(_REPLACE_SECONDS, pool._pool.maintain_pool)
    if _BEATS >= 0:
        os.set_blocking(_BEATS, False)
        hub.call_repeatedly(_BEAT_SECONDS, _beat)


def _beat() -> None:
    """Tell the supervisor that this loop runs and takes jobs."""
    with suppress(BlockingIOError):
        os.write(_BEATS, b".")
