"""Tells which leases have not been renewed, by the observer's own monotonic clock.

The times in rows are the database's wall clock, which may be set back or forward by hours: a holder
that is dead would keep its lease until the old time comes again, and one that is alive would lose
it. So whoever waits for a lease watches whether it changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


class Observer:
    """For how long each of some values has not changed; called once a round with all of them."""

    def __init__(
        self, longest_round_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Count no round for longer than this: if this process stood still, so may the holders."""
        self._longest = longest_round_seconds
        self._clock = clock
        self._looked_at: float | None = None
        self._values: dict[Hashable, tuple[object, float]] = {}

    def unchanged(self, values: Mapping[K, object]) -> dict[K, float]:
        """Return for how many seconds each value has been as it is; forget those that are gone."""
        now = self._clock()
        passed = 0.0 if self._looked_at is None else min(now - self._looked_at, self._longest)
        self._looked_at = now
        known, self._values = self._values, {}
        seconds = {}
        for key, value in values.items():
            before, age = known.get(key, (None, 0.0))
            seconds[key] = age + passed if before == value else 0.0
            self._values[key] = (value, seconds[key])
        return seconds
