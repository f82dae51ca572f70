"""Exact quantiles in one reading: of the tails as they come, of the rest where a sample points.

A sample tells a bracket that holds a quantile almost surely; what lies in it is kept, what lies
above is counted. Should the bracket have missed, the counts say so, and the quantile is looked for
by a histogram instead (`order_statistics`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.kernels.ranks import (
    LOW_BITS,
    bucket_from_top,
    count_above,
    count_buckets,
    find_between,
    find_sizes_outside,
    largest,
)
from worker.merging.linalg.order_statistics import value_of

_DEVIATIONS = 5.0
"""Half the bracket's width, in standard deviations of a sample's quantile."""
_FINITE = 0x7F7FFFFF
"""The key of the largest number."""
_SPARE = 4096
"""How many more keys than are needed may be kept before the tails are cut shorter."""


class Tails:
    """The `smallest` smallest and the `largest` largest magnitudes of the numbers added."""

    def __init__(self, smallest: int, largest: int) -> None:
        self._smallest, self._largest = smallest, largest
        self._zeros = self._kept = 0
        self._low, self._high = _FINITE, _FINITE
        self._keys: list[NDArray[np.int32]] = []

    def add(self, values: Float[Tensor, " n"]) -> None:
        """Take in a block."""
        if not self._keys:
            self._begin(values)
        keys, zeros = find_sizes_outside(values, value_of(self._low), value_of(self._high))
        self._zeros += zeros
        self._append(keys)

    def join(self, later: Tails) -> None:
        """Take in what another found in later blocks."""
        self._zeros += later._zeros
        for keys in later._keys:
            self._append(keys)

    @property
    def quantiles(self) -> tuple[float, float]:
        """The largest of the smallest magnitudes, and the smallest of the largest."""
        keys = np.concatenate([np.empty(0, np.int32), *self._keys])
        last = self._smallest - 1 - self._zeros
        low = int(np.partition(keys, last)[last]) if last >= 0 else 0
        place = len(keys) - self._largest
        high = int(np.partition(keys, place)[place]) if place >= 0 else 0
        return value_of(low), value_of(high)

    @property
    def greatest(self) -> float:
        """The largest magnitude."""
        return value_of(max((int(keys.max()) for keys in self._keys if len(keys)), default=0))

    def _append(self, keys: NDArray[np.int32]) -> None:
        self._keys.append(keys)
        self._kept += len(keys)
        if self._kept > 2 * (self._smallest + self._largest) + _SPARE:
            self._cut()

    def _begin(self, numbers: Float[Tensor, " n"]) -> None:
        """Bring the limits of what is kept to buckets that hold the tails of a first block."""
        counts = np.zeros(1 << (31 - LOW_BITS), np.int64)
        count_buckets(numbers, False, 0, counts)
        top = bucket_from_top(counts, self._largest - 1)
        bottom = bucket_from_top(counts, max(0, len(numbers) - self._smallest))
        self._high = max(1, top << LOW_BITS)
        self._low = min(((bottom + 1) << LOW_BITS) - 1, self._high - 1)

    def _cut(self) -> None:
        """Keep no more than the tails of what was added, and nothing below them from now on."""
        keys = np.concatenate(self._keys)
        wanted, top = max(0, self._smallest - self._zeros), len(keys) - self._largest
        keys.partition([max(0, wanted - 1), top])
        self._low, self._high = int(keys[wanted - 1]) if wanted else 0, int(keys[top])
        self._keys = [np.concatenate([keys[:wanted], keys[top:]])]
        self._kept = len(self._keys[0])


@dataclass
class Bracket:
    """Finds the number at a descending rank, if it is between `low` and `high`."""

    low: float
    high: float
    rank: int
    above: int = 0
    zeros: int = 0
    greatest: float = -math.inf
    _keys: list[NDArray[np.int32]] = field(default_factory=list)

    @classmethod
    def around(cls, sample: Float[Tensor, " m"], rank: int, entries: int) -> Bracket:
        """Return the bracket that a sample of the `entries` numbers points to."""
        ascending = np.sort(sample.numpy())
        share, size = 1.0 - (rank + 0.5) / entries, len(ascending)
        off = _DEVIATIONS * math.sqrt(max(share * (1.0 - share), 0.0) * size) + 2.0
        first, last = math.floor(share * size - off), math.ceil(share * size + off)
        low = float(ascending[first]) if first >= 0 else -math.inf
        high = float(ascending[last]) if last < size else math.inf
        return cls(low, high, rank)

    def add(self, values: Float[Tensor, " n"]) -> None:
        """Take in a block."""
        keys, _ = find_between(values, self.low, self.high, signed=True)
        above, zeros = count_above(values, self.high)
        self.above += above
        self.zeros += zeros
        self.greatest = max(self.greatest, largest(values))
        self._keys.append(keys)

    def join(self, later: Bracket) -> None:
        """Take in what another found in later blocks."""
        self.above += later.above
        self.zeros += later.zeros
        self.greatest = max(self.greatest, later.greatest)
        self._keys += later._keys

    @property
    def value(self) -> float | None:
        """The number at the rank; None if the bracket missed it."""
        keys = np.concatenate([np.empty(0, np.int32), *self._keys])
        place, positive = self.rank - self.above, int(np.count_nonzero(keys > 0))
        if self.low <= 0 <= self.high:
            if positive <= place < positive + self.zeros:
                return 0.0
            place -= self.zeros if place >= positive else 0
        if not 0 <= place < len(keys):
            return None
        ascending = len(keys) - 1 - place
        return value_of(int(np.partition(keys, ascending)[ascending]))
