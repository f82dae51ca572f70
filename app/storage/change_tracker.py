"""Detects leases that are not renewed, by the tracker's own monotonic clock.

The times in rows come from the database's wall clock. If it were set back by hours, dead holders
would keep their leases; if it were set forward, live ones would lose theirs. So whoever waits for
a lease watches whether its row changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


class ChangeTracker:
    """Measures for how long values have not changed; call `unchanged` in each round with all."""

    def __init__(
        self, longest_round_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Count at most this time per round: if this process was suspended, holders may be too."""
        self._longest = longest_round_seconds
        self._clock = clock
        self._looked_at: float | None = None
        self._values: dict[Hashable, tuple[object, float]] = {}

    def unchanged(self, values: Mapping[K, object]) -> dict[K, float]:
        """Return for how many seconds each value has not changed; forget values not given."""
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
