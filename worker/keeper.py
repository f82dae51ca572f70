"""Renews a lease while its job runs, and stops the job if it was cancelled or lost its lease."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from app.contract.settings import Settings
from app.storage.leases import Lease, LeaseLostError, renew, status_of

_LOG = logging.getLogger(__name__)
# How long a cancelled job may run before its process is ended; with AFLUENTE_POLL_SECONDS (0.5)
# cancelling takes less than two seconds.
_CANCEL_PATIENCE_SECONDS = 1.0

Reason = Literal["cancelling", "stopping", "lost"]


class LeaseKeeper:
    """A thread that renews the lease, watches the job's status, and tells the job to stop.

    If the job does not stop in time (in a long decomposition, for example), its process is ended
    after `at_end` has recorded the outcome.
    """

    def __init__(
        self,
        engine: Engine,
        lease: Lease,
        settings: Settings,
        worker_id: str,
        at_end: Callable[[Reason], None],
    ) -> None:
        self.stopping = threading.Event()
        self.reason: Reason | None = None
        self._engine, self._lease, self._settings = engine, lease, settings
        self._worker_id = worker_id
        self._at_end = at_end
        self._others: tuple[Lease, ...] = ()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def holding(self, other: Lease) -> Iterator[None]:
        """Also renew another lease within the context.

        Losing it does not stop the job; writing with it raises LeaseLostError.
        """
        self._others = (*self._others, other)
        try:
            yield
        finally:
            self._others = tuple(lease for lease in self._others if lease != other)

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self._done.wait(self._settings.poll_seconds):
            try:
                reason = self._stop_reason()
                if reason is None and time.monotonic() - renewed >= self._settings.renew_seconds:
                    self._renew()
                    renewed = time.monotonic()
            except LeaseLostError:
                reason = "lost"
            except SQLAlchemyError as error:
                # If the lease expires meanwhile, the fence protects the job.
                _LOG.warning("%s: the database did not respond: %s", self._lease.id, error)
                continue
            if reason is not None:
                self._end(reason)
                return

    def _renew(self) -> None:
        seconds = self._settings.lease_seconds
        renew(self._engine, self._lease, seconds)
        for other in self._others:
            with suppress(LeaseLostError):  # it may have ended
                renew(self._engine, other, seconds)

    def _stop_reason(self) -> Reason | None:
        status = status_of(self._engine, self._lease, self._worker_id)
        if status == "cancelling":
            return "cancelling"
        return "stopping" if status == "stopping" else None

    def _end(self, reason: Reason) -> None:
        self.reason = reason
        self.stopping.set()
        patience = _CANCEL_PATIENCE_SECONDS
        if reason == "stopping":
            patience = self._settings.stop_seconds
        deadline = time.monotonic() + patience
        while not self._done.wait(min(self._settings.renew_seconds, 0.5)):
            try:
                if reason == "stopping" and time.monotonic() < deadline:
                    self._renew()
                    continue
                if time.monotonic() < deadline:
                    continue
                self._at_end(reason)
            except (LeaseLostError, SQLAlchemyError) as error:
                _LOG.warning("%s: %s while ending it", self._lease.id, error)
            if time.monotonic() >= deadline:
                _LOG.info("%s: ending its process (%s)", self._lease.id, reason)
                os._exit(0)
