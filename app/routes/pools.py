"""Threads for what may be slow, a bounded pool a kind: one slow thing does not stop the others.

What only reads the database runs in the threads that all handlers share by default.
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
    """At most `threads` calls at once and `waiting` more behind them, for `patience_seconds`.

    Beyond that the request is refused with `busy`, of the kind `error`: 503, to be sent again.
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
        """Return what the function returns, called in one of the threads."""
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
            # This pool has counted the thread; the default limiter must not do so again.
            return await to_thread.run_sync(call, limiter=CapacityLimiter(math.inf))
        finally:
            limiter.release_on_behalf_of(place)

    def __call__(self, function: Callable[_P, _T]) -> Callable[_P, Awaitable[_T]]:
        """Decorate a route's function: it runs in this pool."""

        @functools.wraps(function)
        async def run(*arguments: _P.args, **options: _P.kwargs) -> _T:
            return await self.run(function, *arguments, **options)

        return run

    def _limiter_here(self) -> CapacityLimiter:
        """Return this event loop's limiter."""
        try:
            return self._limiter.get()
        except LookupError:
            self._limiter.set(CapacityLimiter(self.threads))
            return self._limiter.get()


REMOTE = Pool(
    "remote sources",
    threads=16,
    busy="Too many requests wait for remote sources just now (the hub may be slow); try again.",
    error=SourceUnreachableError,
)
SUBMISSION = Pool(
    "submissions",
    threads=16,
    busy="Too many requests are being checked just now (the file system or the database may be "
    "slow); try again.",
)
CHANGE = Pool(
    "changes",
    threads=8,
    busy="Too many changes wait for the database just now; try again.",
)
SCORING = Pool(
    "scoring",
    threads=4,
    busy="Too many error rates are being computed just now; try again.",
    patience_seconds=30.0,
)
FILES = Pool(
    "artifact files",
    threads=16,
    busy="The artifact store is slow just now; try again.",
    waiting=1000,
    patience_seconds=30.0,
)
PROBE = Pool(
    "probes",
    threads=4,
    busy="Not ready: the checks before this one do not come to an end.",
    patience_seconds=3.0,
)


def pool_for(uris: Iterable[str]) -> Pool:
    """Return where to check a request that names these sources."""
    return REMOTE if any(is_remote(uri) for uri in uris) else SUBMISSION
