"""Exact order statistics of tensors that are read by blocks, without sorting or keeping them.

A float32's bits order like the number: the largest of n magnitudes are the largest of n integers.
A first reading counts them by their upper bits, which tells the bucket that holds a rank; a second
keeps only what lies in that bucket (mostly a percent), which tells the number itself and, of the
entries equal to it, how far along the tensor they still count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.kernels import ranks
from worker.merging.kernels.ranks import (
    LOW_BITS,
    MAGNITUDE,
    bucket_from_top,
    count_buckets,
    find_between,
)

_SIGNED_BUCKETS = 1 << (32 - LOW_BITS)
_FINITE = 0x7F800000 >> LOW_BITS
"""The first bucket of what is not finite."""


def value_of(key: int) -> float:
    """Return the number that a key stands for.

    Keys are integers that order as |x| does (not negative) or as x does; 0 for 0 either way.
    """
    bits = key if key >= 0 else key ^ MAGNITUDE
    return float(np.array(bits, np.int32).view(np.float32))


class Histogram:
    """How many numbers of each stream fall into each bucket of 2¹⁷ consecutive keys.

    They are ranked by magnitude; with `signed` as they are, negative zeros not allowed.
    """

    def __init__(self, streams: int, *, signed: bool) -> None:
        self.signed = signed
        self._lowest = -(_SIGNED_BUCKETS // 2) if signed else 0
        # Of numpy: its zeros are pages that nobody has touched, which most of them stay.
        buckets = _SIGNED_BUCKETS // 2 - self._lowest
        self.counts = torch.from_numpy(np.zeros((streams, buckets), np.int64))

    def add(self, stream: int, values: Float[Tensor, " n"]) -> None:
        """Count a block's numbers."""
        counts = self.counts[stream].numpy()
        count_buckets(values, self.signed, self._lowest, counts)

    def join(self, later: Histogram) -> None:
        """Add what another histogram counted."""
        self.counts += later.counts

    @property
    def entries(self) -> int:
        """How many keys each stream has."""
        return int(self.counts[0].sum())

    def largest(self, stream: int) -> float:
        """Return a number that none of a stream is larger than; infinity at the worst."""
        filled = self.counts[stream].nonzero()
        bucket = self._lowest + int(filled[-1])
        return value_of(((bucket + 1) << LOW_BITS) - 1) if bucket < _FINITE else math.inf

    def find(self, stream: int, wanted: Sequence[int]) -> list[Place]:
        """Return where the keys of descending ranks (0 is the largest) lie."""
        counts, places = self.counts[stream].numpy(), []
        for rank in wanted:
            index = bucket_from_top(counts, rank)
            above = int(self.counts[stream, index + 1 :].sum())
            places.append(Place(self._lowest + index, rank - above))
        return places


@dataclass(frozen=True)
class Place:
    """A bucket (a key's upper bits), and the descending rank of a key among those in it."""

    bucket: int
    rank: int


@dataclass(frozen=True)
class Boundary:
    """The key at a rank; of the entries equal to it, those up to position `last` rank as high."""

    key: int
    last: int

    @property
    def value(self) -> float:
        """The number that the key stands for."""
        return value_of(self.key)

    def split(self, start: int) -> int:
        """Return how many entries of a block that begins at `start` come up to `last`."""
        return max(self.last + 1 - start, 0)


ALL = Boundary(0, 2**62)
"""Keeps everything."""
NONE = Boundary(MAGNITUDE, -1)
"""Keeps nothing."""


def bucket_boundary(bucket: int) -> Boundary:
    """Return the boundary that keeps what is larger than all of a bucket."""
    return Boundary(((bucket + 1) << LOW_BITS) - 1, -1)


@dataclass(frozen=True)
class Chunk:
    """The keys of one block in one bucket, and where in the block they are."""

    start: int
    keys: NDArray[np.int32]
    offsets: NDArray[np.int32]

    def kept(self, boundary: Boundary) -> NDArray[np.bool_]:
        """Say of each whether the boundary keeps it."""
        split = boundary.split(self.start)
        kept: NDArray[np.bool_] = self.keys > boundary.key
        kept |= (self.keys == boundary.key) & (self.offsets < split)
        return kept


@dataclass
class Candidates:
    """The keys in the buckets that hold the wanted ranks, per stream; zeros are passed over.

    Zeros are the lowest of their bucket, and there may be very many of them.
    """

    places: Sequence[Sequence[Place]]
    signed: bool = False
    _found: dict[tuple[int, int], list[Chunk]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stream, places in enumerate(self.places):
            for place in places:
                self._found[stream, place.bucket] = []

    def add(self, stream: int, values: Float[Tensor, " n"], start: int) -> list[Chunk]:
        """Keep of a block that begins at position `start` what may be at a rank; return it."""
        added = []
        for bucket in {place.bucket for place in self.places[stream]}:
            low = value_of(bucket << LOW_BITS)
            high = value_of(((bucket + 1) << LOW_BITS) - 1)
            keys, offsets = find_between(values, low, high, signed=self.signed)
            if len(keys):
                chunk = Chunk(start, keys, offsets)
                self._found[stream, bucket].append(chunk)
                added.append(chunk)
        return added

    def join(self, later: Candidates) -> None:
        """Take over what was found in later blocks."""
        for key, chunks in later._found.items():
            self._found[key] += chunks

    def boundaries(self, stream: int) -> list[Boundary]:
        """Return the boundary at each of the stream's wanted ranks."""
        return [self._boundary(stream, place) for place in self.places[stream]]

    def _boundary(self, stream: int, place: Place) -> Boundary:
        chunks = self._found[stream, place.bucket]
        count = sum(len(chunk.keys) for chunk in chunks)
        if place.rank >= count:
            return Boundary(0, -1)
        keys = np.concatenate([chunk.keys for chunk in chunks])
        ascending = count - 1 - place.rank
        key = int(np.partition(keys, ascending)[ascending])
        needed = place.rank + 1 - int(np.count_nonzero(keys > key))
        for chunk in chunks:
            equal = chunk.offsets[chunk.keys == key]
            if len(equal) >= needed:
                return Boundary(key, chunk.start + int(equal[needed - 1]))
            needed -= len(equal)
        raise AssertionError("a rank below the count has an entry")


def keep_largest(
    values: Float[Tensor, " n"], boundary: Boundary, start: int
) -> Float[Tensor, " n"]:
    """Return a copy with all but the largest magnitudes, down to the boundary, set to 0.

    `start` is the position of the first entry. What is kept is the exact number: equal magnitudes
    are kept up to the boundary's position.
    """
    kept = torch.empty_like(values)
    ranks.keep_largest(values, boundary.key, boundary.split(start), kept)
    return kept
