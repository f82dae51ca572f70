"""One attempt at a job: takes the lease, runs the work, records the outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from app.contract.errors import AfluenteError, InternalError, StorageError
from app.contract.settings import Settings
from app.sources.fetch import FetchStoppedError
from app.storage.artifacts import ArtifactStore
from app.storage.database import AWAY, connect, writing
from app.storage.leases import (
    JobKind,
    Lease,
    LeaseLostError,
    any_waits,
    finish,
    give_back,
    interrupted,
    mark_unsent,
    status_of,
    take,
)
from app.storage.parts import Part, claim, leave_to_lead
from app.storage.queue import Queue
from app.storage.studies import Piece
from app.storage.studies import claim as claim_piece
from worker.evaluation.runner import EvaluationStoppedError
from worker.keeper import LeaseKeeper, Reason
from worker.merging.engine.job import Interrupted
from worker.processes.owners import describe_process

_LOG = logging.getLogger(__name__)
# Minimum time between two progress events.
_PROGRESS_SECONDS = 0.5
# Time between two tries while the database does not respond.
_DATABASE_SECONDS = 0.5
# How long a worker waits for the next piece of a study, and how often it looks for one.
_IDLE_SECONDS, _PIECE_SECONDS = 10.0, 0.1

T = TypeVar("T")


@dataclass
class Attempt:
    """The context of the work on a job."""

    settings: Settings
    engine: Engine
    queue: Queue
    store: ArtifactStore
    lease: Lease
    keeper: LeaseKeeper
    worker_id: str

    @property
    def topic(self) -> str:
        """The merge or study whose events tell about the job."""
        return self.lease.topic

    def wake(self) -> None:
        """Wake the readers of the topic's events."""
        self.queue.wake(self.topic)

    def retried(self, call: Callable[[], T]) -> T:
        """Return the result of `call`; while the database does not respond, retry.

        Retries for a lease's length, and at least once, so that hours of work survive a restart of
        the database. A call may have succeeded although its response was lost. Raises Interrupted
        if the job is told to stop, and the last error when retries end; then the lease is let go
        (see `_run`).
        """
        deadline = time.monotonic() + self.settings.lease_seconds
        for attempt in count(1):
            try:
                return call()
            except AWAY as error:
                if attempt > 1 and time.monotonic() >= deadline:
                    raise
                _LOG.warning("%s: the database did not respond: %s", self.lease.id, error)
            if self.keeper.stopping.wait(_DATABASE_SECONDS):
                break
        raise Interrupted

    def throttled(self, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Return `report`, called at most twice a second, and always when done equals total."""
        last = 0.0

        def throttle(done: int, total: int) -> None:
            nonlocal last
            if done < total and time.monotonic() - last < _PROGRESS_SECONDS:
                return
            last = time.monotonic()
            try:
                report(done, total)
            except SQLAlchemyError as error:
                # Not worth failing hours of work.
                _LOG.warning("%s: progress was not recorded: %s", self.lease.id, error)
            self.wake()

        return throttle


def attempt_job(
    kind: JobKind,
    job_id: str,
    settings: Settings,
    worker_id: str,
    works: Mapping[JobKind, Callable[[Attempt], None]],
) -> bool:
    """Run the job if it is queued; return whether a job was run. Failures end up in its record.

    Messages for jobs that are taken or over are ignored. A job that lost its worker precedes the
    message's job, which then waits for another message.
    """
    with _opened(settings) as engine:
        first = interrupted(engine)
        if first is not None and first != (kind, job_id):
            mark_unsent(engine, kind, job_id)
            kind, job_id = first
        lease = take(engine, kind, job_id, describe_process(worker_id), settings.lease_seconds)
        if lease is None:
            _LOG.info("%s: already taken or over", job_id)
            return False
        attempt_lease(engine, lease, settings, worker_id, works[kind])
        return True


def attempt_parts(
    evaluation_id: str,
    settings: Settings,
    worker_id: str,
    device_type: str,
    work: Callable[[Part, Attempt], None],
) -> None:
    """Decode free parts of an evaluation that another worker leads, one after another.

    Takes only parts for this type of device. Stops after a part that fails here, and as soon as
    other jobs wait for a worker.
    """
    with _opened(settings) as engine:
        owner = describe_process(worker_id)
        seconds = settings.lease_seconds
        while part := claim(engine, evaluation_id, owner, seconds, device_type):
            done = attempt_lease(engine, part.lease, settings, worker_id, partial(work, part))
            if not done or any_waits(engine):
                return


def attempt_pieces(
    study_id: str,
    settings: Settings,
    worker_id: str,
    device_type: str,
    work: Callable[[Piece, Attempt], None],
    loaded: Callable[[], str | None],
) -> None:
    """Decode free pieces of a study that another worker leads, until other jobs wait.

    `loaded` returns the system whose pieces are preferred. While the study has no free piece, waits
    for some seconds: the next rung is usually near, and the worker would have to load everything
    again. Stops after a piece that fails here.
    """
    with _opened(settings) as engine:
        owner, seconds = describe_process(worker_id), settings.lease_seconds
        deadline = time.monotonic() + _IDLE_SECONDS
        while time.monotonic() < deadline and not any_waits(engine):
            piece = claim_piece(engine, study_id, owner, seconds, device_type, loaded=loaded())
            if piece is None:
                time.sleep(_PIECE_SECONDS)
                continue
            if not attempt_lease(engine, piece.lease, settings, worker_id, partial(work, piece)):
                return
            deadline = time.monotonic() + _IDLE_SECONDS


def attempt_lease(
    engine: Engine,
    lease: Lease,
    settings: Settings,
    worker_id: str,
    work: Callable[[Attempt], None],
) -> bool:
    """Run the work for a lease while renewing it; return whether it was completed."""
    queue = Queue(settings.broker)
    queue.wake(lease.topic)

    def at_end(reason: Reason) -> None:
        _conclude(engine, lease, reason)
        queue.wake(lease.topic)

    try:
        with LeaseKeeper(engine, lease, settings, worker_id, at_end) as keeper:
            store = ArtifactStore(settings.artifacts)
            done = _run(Attempt(settings, engine, queue, store, lease, keeper, worker_id), work)
        return done and keeper.reason is None
    finally:
        queue.wake(lease.topic)


@contextmanager
def _opened(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    try:
        yield engine
    finally:
        engine.dispose()


def _run(attempt: Attempt, work: Callable[[Attempt], None]) -> bool:
    lease = attempt.lease
    try:
        work(attempt)
        return True
    except (Interrupted, FetchStoppedError, EvaluationStoppedError):
        _conclude(attempt.engine, lease, attempt.keeper.reason or "lost")
    except LeaseLostError:
        # Cancelling an evaluation ends the leases of its parts; the lead then has to end it.
        if _is_cancelling(attempt.engine, lease):
            _conclude(attempt.engine, lease, "cancelling")
        else:
            _LOG.info("%s: attempt %d lost its lease and stops", lease.id, lease.attempt)
    except AWAY as error:
        # Nothing is recorded: the lease expires, and the next attempt adopts what is finished.
        _LOG.warning("%s: let go, the database did not respond: %s", lease.id, error)
    except AfluenteError as error:
        _LOG.warning("%s failed: %s: %s", lease.id, error.code, error.message)
        _fail(attempt, error.as_record(), free_scratch=isinstance(error, StorageError))
    except Exception as error:  # noqa: BLE001 - a bug must end the job too
        _LOG.exception("%s failed", lease.id)
        # The error's text may have statements and paths, so only the log has it.
        fault = InternalError(
            f"The service itself failed ({type(error).__name__}); the worker's log has details. "
            "Retry, and report it if it happens again."
        )
        _fail(attempt, fault.as_record())
    return False


def _fail(attempt: Attempt, record: Mapping[str, Any], *, free_scratch: bool = False) -> None:
    engine, lease = attempt.engine, attempt.lease
    if lease.kind.whole:
        # A missing mount or a full disk here may be no problem for the lead of the whole job.
        with suppress(LeaseLostError):
            leave_to_lead(engine, lease)
        return
    try:
        _end_failed(attempt, record, free_scratch=free_scratch)
    except LeaseLostError:
        # Perhaps it was cancelled at the same time.
        _conclude(engine, lease, "cancelling")
        return
    if free_scratch:
        # Free the full disk, although a retry could have adopted the finished tensors.
        attempt.store.remove_scratch(lease.id)


def _end_failed(attempt: Attempt, record: Mapping[str, Any], *, free_scratch: bool) -> None:
    def end() -> None:
        with writing(attempt.engine) as connection:
            finish(connection, attempt.lease, "failed", {"error": dict(record)})

    try:
        end()
    except OperationalError:
        if not free_scratch:
            raise
        # Perhaps the database is on the same full disk. Other attempts' folders stay, since this
        # one may have lost the job.
        attempt.store.remove_attempt(attempt.lease.id, attempt.lease.fence)
        end()


def _is_cancelling(engine: Engine, lease: Lease) -> bool:
    try:
        return status_of(engine, lease) == "cancelling"
    except LeaseLostError:
        return False


def _conclude(engine: Engine, lease: Lease, reason: Reason) -> None:
    """Record the end of a job that was told to stop."""
    if reason == "stopping":
        try:
            give_back(engine, lease)
        except LeaseLostError:
            reason = "cancelling"  # it may have been cancelled in the meantime
    if reason == "cancelling":
        with suppress(LeaseLostError), writing(engine) as connection:
            finish(connection, lease, "cancelled")
