"""One attempt at a job: takes the lease, runs the work, records what became of it."""

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
    finish,
    give_back,
    interrupted,
    look,
    mark_unsent,
    take,
)
from app.storage.parts import Part, claim, leave_to_lead
from app.storage.queue import Queue
from worker.evaluation.runner import EvaluationStoppedError
from worker.keeper import Keeper, Reason
from worker.merging.engine.run import Interrupted
from worker.processes.owners import describe_process

_LOG = logging.getLogger(__name__)
# Progress is told at most this often: two events a second.
_PROGRESS_SECONDS = 0.5
# How often a database is asked again that did not answer.
_DATABASE_SECONDS = 0.5

T = TypeVar("T")


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

    def patiently(self, tell: Callable[[], T]) -> T:
        """Return what the database answers; while it does not, ask again for a lease's length.

        At least twice. Hours of work do not end because the database was started anew. `tell` may
        have done its work before the answer got lost. Interrupted if the job is to stop meanwhile;
        what the database raises if patience ends: then the lease is let go (see `_run`).
        """
        patience = time.monotonic() + self.settings.lease_seconds
        for asked in count(1):
            try:
                return tell()
            except AWAY as error:
                if asked > 1 and time.monotonic() >= patience:
                    raise
                _LOG.warning("%s: the database did not answer: %s", self.lease.id, error)
            if self.keeper.stopping.wait(_DATABASE_SECONDS):
                break
        raise Interrupted

    def throttled(self, tell: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Return `tell` slowed down to the rate that events are written at; the last one counts."""
        last = 0.0

        def throttle(done: int, total: int) -> None:
            nonlocal last
            if done < total and time.monotonic() - last < _PROGRESS_SECONDS:
                return
            last = time.monotonic()
            try:
                tell(done, total)
            except SQLAlchemyError as error:
                # Hours of work do not end because a number could not be told.
                _LOG.warning("%s: the database took no progress: %s", self.lease.id, error)
            self.wake()

        return throttle


def attempt_job(
    kind: JobKind,
    job_id: str,
    settings: Settings,
    worker_id: str,
    works: Mapping[JobKind, Callable[[Attempt], None]],
) -> bool:
    """Do the job if it is free, and say whether it was; what goes wrong ends up in its record.

    A message for a job that somebody else has, or that is over, is passed over. A job that lost
    its worker goes before the one that the message names, which then waits for another message.
    """
    with _opened(settings) as engine:
        first = interrupted(engine)
        if first is not None and first != (kind, job_id):
            mark_unsent(engine, kind, job_id)
            kind, job_id = first
        lease = take(engine, kind, job_id, describe_process(worker_id), settings.lease_seconds)
        if lease is None:
            _LOG.info("%s: it is taken or over", job_id)
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
    """Do parts of an evaluation that another worker has, one after another, while any is free.

    Only those for this type of device, and none after one that fails here. Jobs that wait for a
    worker go first: the parts are those of a job that has one.
    """
    with _opened(settings) as engine:
        queue = Queue(str(settings.broker))
        owner = describe_process(worker_id)
        seconds = settings.lease_seconds
        while part := claim(engine, evaluation_id, owner, seconds, device_type):
            done = attempt_lease(engine, part.lease, settings, worker_id, partial(work, part))
            if not done or queue.depth() != 0:
                return


def attempt_lease(
    engine: Engine,
    lease: Lease,
    settings: Settings,
    worker_id: str,
    work: Callable[[Attempt], None],
) -> bool:
    """Do what a lease is for, and keep it meanwhile; False if it was not done."""
    queue = Queue(str(settings.broker))
    queue.wake(lease.merge_id)

    def at_end(reason: Reason) -> None:
        _conclude(engine, lease, reason)
        queue.wake(lease.merge_id)

    try:
        with Keeper(engine, lease, settings, worker_id, at_end) as keeper:
            store = ArtifactStore(settings.artifacts)
            done = _run(Attempt(settings, engine, queue, store, lease, keeper), work)
        return done and keeper.reason is None
    finally:
        queue.wake(lease.merge_id)


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
        # A part's is lost as soon as its evaluation is being cancelled, which its lead has to end.
        if _is_cancelling(attempt.engine, lease):
            _conclude(attempt.engine, lease, "cancelling")
        else:
            _LOG.info("%s: attempt %d lost its lease and leaves no trace", lease.id, lease.attempt)
    except AWAY as error:
        # Nothing is recorded: the lease runs out, and whoever has the job next takes over what is
        # done. A statement that no database would take ends with the last attempt.
        _LOG.warning("%s: let go, the database did not answer: %s", lease.id, error)
    except AfluenteError as error:
        _LOG.warning("%s failed: %s: %s", lease.id, error.code, error.message)
        _fail(attempt, error.as_record(), free_scratch=isinstance(error, StorageError))
    except Exception as error:  # noqa: BLE001 - a fault of ours: the job must end, and the log says why
        _LOG.exception("%s failed", lease.id)
        # What it says may hold statements and paths; the log keeps them.
        fault = InternalError(
            f"A fault of the service ({type(error).__name__}); the worker's log tells more. "
            "Retry, and report it if it happens again."
        )
        _fail(attempt, fault.as_record())
    return False


def _fail(attempt: Attempt, record: Mapping[str, Any], *, free_scratch: bool = False) -> None:
    engine, lease = attempt.engine, attempt.lease
    if lease.kind is JobKind.PART:
        # What fails here (a missing mount, a full disk) need not fail where the evaluation is led.
        with suppress(LeaseLostError):
            leave_to_lead(engine, lease)
        return
    try:
        _end_failed(attempt, record, free_scratch=free_scratch)
    except LeaseLostError:
        # It was cancelled at the same time, perhaps: then that is how it ends.
        _conclude(engine, lease, "cancelling")
        return
    if free_scratch:
        # A full disk is not helped by keeping what a retry could take over.
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
        # The database is on the same full disk, perhaps. Not the folders of other attempts: nobody
        # knows yet whether this one still has the job.
        attempt.store.remove_attempt(attempt.lease.id, attempt.lease.fence)
        end()


def _is_cancelling(engine: Engine, lease: Lease) -> bool:
    try:
        return look(engine, lease) == "cancelling"
    except LeaseLostError:
        return False


def _conclude(engine: Engine, lease: Lease, reason: Reason) -> None:
    """Record the end of a job that was told to stop."""
    if reason == "stopping":
        try:
            give_back(engine, lease)
        except LeaseLostError:
            reason = "cancelling"  # asked for in the meantime, if the job is ours at all
    if reason == "cancelling":
        with suppress(LeaseLostError), writing(engine) as connection:
            finish(connection, lease, "cancelled")
