"""Bounded thread pools, one for each kind of slow work, so that one kind cannot block the others.

Handlers that only read the database run in FastAPI's default threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from app.contract.errors import AfluenteError, NotReadyError, SourceUnreachableError
from app.sources.schemes import is_remote

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pool:
    """Runs at most `threads` calls; at most `waiting` more wait, for up to `patience_seconds`.

    Further requests are refused with a 503: an `error` with the message `busy`.
    """

    name: str
    threads: int
    busy: str
    error: type[AfluenteError] = NotReadyError
    waiting: int = 100
    patience_seconds: float = 10.0
    _limiter: RunVar[CapacityLimiter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_limiter", RunVar(f"afluente {self.name}"))

    async def run(
        self, function: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs
    ) -> _T:
        """Call the function in one of the threads, and return its result."""
        limiter = self._limiter_here()
        if limiter.statistics().tasks_waiting >= self.waiting:
            raise self.error(self.busy)
        place = object()
        try:
            with anyio.fail_after(self.patience_seconds):
                await limiter.acquire_on_behalf_of(place)
        except TimeoutError:
            raise self.error(self.busy) from None
        try:
            call = functools.partial(function, *arguments, **options)
            # This pool counts the thread, so the default limiter must not.
            return await to_thread.run_sync(call, limiter=CapacityLimiter(math.inf))
        finally:
            limiter.release_on_behalf_of(place)

    def __call__(self, function: Callable[_P, _T]) -> Callable[_P, Awaitable[_T]]:
        """Decorate a route's function to run in this pool."""

        @functools.wraps(function)
        async def run(*arguments: _P.args, **options: _P.kwargs) -> _T:
            return await self.run(function, *arguments, **options)

        return run

    def _limiter_here(self) -> CapacityLimiter:
        """Return the limiter of this event loop."""
        try:
            return self._limiter.get()
        except LookupError:
            self._limiter.set(CapacityLimiter(self.threads))
            return self._limiter.get()


REMOTE = Pool(
    "remote sources",
    threads=16,
    busy="Too many requests are waiting for remote sources (the hub may be slow); try again.",
    error=SourceUnreachableError,
)
SUBMISSION = Pool(
    "submissions",
    threads=16,
    busy="Too many requests are being checked (the file system or the database may be slow); try "
    "again.",
)
CHANGE = Pool(
    "changes",
    threads=8,
    busy="Too many changes are waiting for the database; try again.",
)
SCORING = Pool(
    "scoring",
    threads=4,
    busy="Too many error rates are being computed; try again.",
    patience_seconds=30.0,
)
FILES = Pool(
    "artifact files",
    threads=16,
    busy="The artifact store is slow; try again.",
    waiting=1000,
    patience_seconds=30.0,
)
PROBE = Pool(
    "probes",
    threads=4,
    busy="Not ready: earlier checks are still running.",
    patience_seconds=3.0,
)


def pool_for(uris: Iterable[str]) -> Pool:
    """Return the pool for checking a request with these sources."""
    return REMOTE if any(is_remote(uri) for uri in uris) else SUBMISSION
