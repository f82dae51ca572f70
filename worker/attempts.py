"""One attempt at a job: takes the lease, runs the work, records what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Engine

from app.contract.errors import AfluenteError, InternalError
from app.contract.settings import Settings
from app.sources.fetch import FetchStoppedError
from app.storage.artifacts import ArtifactStore
from app.storage.database import connect, writing
from app.storage.leases import JobKind, Lease, LeaseLostError, finish, give_back, take
from app.storage.queue import Queue
from worker.evaluation.runner import EvaluationStoppedError
from worker.keeper import Keeper, Reason
from worker.merging.engine.run import Interrupted
from worker.processes.owners import describe_process

_LOG = logging.getLogger(__name__)
# Progress is told at most this often: two events a second.
_PROGRESS_SECONDS = 0.5


@dataclass
class Attempt:
    """What the work on a job has at hand."""

    settings: Settings
    engine: Engine
    queue: Queue
    store: ArtifactStore
    lease: Lease
    keeper: Keeper

    @property
    def merge_id(self) -> str:
        """The merge that the job is, or belongs to."""
        return self.lease.merge_id

    def wake(self) -> None:
        """Wake the readers of the merge's events."""
        self.queue.wake(self.merge_id)

    def throttled(self, tell: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Return `tell` slowed down to the rate that events are written at; the last one counts."""
        last = 0.0

        def throttle(done: int, total: int) -> None:
            nonlocal last
            if done < total and time.monotonic() - last < _PROGRESS_SECONDS:
                return
            last = time.monotonic()
            tell(done, total)
            self.wake()

        return throttle


def attempt_job(
    kind: JobKind,
    job_id: str,
    settings: Settings,
    worker_id: str,
    work: Callable[[Attempt], None],
) -> None:
    """Take the job if it is free and do it; what goes wrong ends up in its record.

    A message for a job that somebody else has, or that is over, is passed over.
    """
    engine = connect(settings.database)
    owner = describe_process(worker_id)
    lease = take(engine, kind, job_id, owner, settings.lease_seconds)
    if lease is None:
        _LOG.info("%s: nothing to do, it is taken or over", job_id)
        return
    queue = Queue(str(settings.broker))
    queue.wake(lease.merge_id)

    def at_end(reason: Reason) -> None:
        _conclude(engine, lease, reason)
        queue.wake(lease.merge_id)

    try:
        with Keeper(engine, lease, settings, worker_id, at_end) as keeper:
            store = ArtifactStore(settings.artifacts)
            _run(Attempt(settings, engine, queue, store, lease, keeper), work)
    finally:
        queue.wake(lease.merge_id)
        engine.dispose()


def _run(attempt: Attempt, work: Callable[[Attempt], None]) -> None:
    lease = attempt.lease
    try:
        work(attempt)
    except (Interrupted, FetchStoppedError, EvaluationStoppedError):
        _conclude(attempt.engine, lease, attempt.keeper.reason or "lost")
    except LeaseLostError:
        _LOG.info("%s: attempt %d lost its lease and leaves no trace", lease.id, lease.attempt)
    except AfluenteError as error:
        _LOG.warning("%s failed: %s: %s", lease.id, error.code, error.message)
        _fail(attempt, error)
    except Exception as error:  # noqa: BLE001 - a fault of ours: the job must end, and the log says why
        _LOG.exception("%s failed", lease.id)
        _fail(attempt, InternalError(f"{type(error).__name__}: {error}"))


def _fail(attempt: Attempt, error: AfluenteError) -> None:
    try:
        with writing(attempt.engine) as connection:
            finish(connection, attempt.lease, "failed", {"error": error.as_record()})
    except LeaseLostError:
        # It was cancelled at the same time, perhaps: then that is how it ends.
        _conclude(attempt.engine, attempt.lease, "cancelling")


def _conclude(engine: Engine, lease: Lease, reason: Reason) -> None:
    """Record the end of a job that was told to stop."""
    with suppress(LeaseLostError):
        if reason == "stopping":
            give_back(engine, lease)
        elif reason == "cancelling":
            with writing(engine) as connection:
                finish(connection, lease, "cancelled")
