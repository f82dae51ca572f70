"""Keeps a lease while a job runs, and ends the job when it is no longer wanted."""

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
from app.storage.leases import Lease, LeaseLostError, look, renew

_LOG = logging.getLogger(__name__)
# How long a job may take to notice that it was cancelled, before its process is ended: with the
# half second between two looks this stays under two seconds.
_CANCEL_PATIENCE_SECONDS = 1.0

Reason = Literal["cancelling", "stopping", "lost"]


class Keeper:
    """A thread that renews the lease, watches the record, and asks the job to stop.

    A job that does not listen (deep in one long decomposition) is ended with its process, after
    `at_end` has recorded the outcome.
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

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def holding(self, other: Lease) -> Iterator[None]:
        """Renew another lease too for as long as the context lasts.

        Its loss ends nothing: whoever writes with it is told.
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
                reason = self._look()
                if reason is None and time.monotonic() - renewed >= self._settings.renew_seconds:
                    self._renew()
                    renewed = time.monotonic()
            except LeaseLostError:
                reason = "lost"
            except SQLAlchemyError as error:
                # The lease may run out; then the fence keeps this attempt from doing harm.
                _LOG.warning("%s: the database did not answer: %s", self._lease.id, error)
                continue
            if reason is not None:
                self._end(reason)
                return

    def _renew(self) -> None:
        seconds = self._settings.lease_seconds
        renew(self._engine, self._lease, seconds)
        for other in self._others:
            # Or it has ended in the meantime, as it should.
            with suppress(LeaseLostError):
                renew(self._engine, other, seconds)

    def _look(self) -> Reason | None:
        status = look(self._engine, self._lease, self._worker_id)
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
                _LOG.warning("%s: %s while it was ended", self._lease.id, error)
            if time.monotonic() >= deadline:
                _LOG.info("%s: ended with its process (%s)", self._lease.id, reason)
                os._exit(0)
