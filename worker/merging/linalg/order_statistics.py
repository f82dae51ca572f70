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
from jaxtyping import Float, Int32
from numpy.typing import NDArray
from torch import Tensor

_LOW_BITS = 17
"""The rest tells the bucket: sign, exponent and 6 bits of the fraction, a table for the cache."""
_SIGNED_BUCKETS = 1 << 15
_MAGNITUDE = 0x7FFFFFFF
_FINITE = 0x7F800000 >> _LOW_BITS
"""The first bucket of what is not finite."""


def magnitude_keys(values: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Return integers that order as |x| does: not negative, 0 for 0."""
    return values.view(torch.int32).bitwise_and(_MAGNITUDE)


def ordered_keys(values: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Return integers that order as x does, 0 for 0; there must be no negative zeros."""
    bits = values.view(torch.int32)
    return (bits >> 31).bitwise_and_(_MAGNITUDE).bitwise_xor_(bits)


def value_of(key: int) -> float:
    """Return the number that a key, of either kind, stands for."""
    bits = key if key >= 0 else key ^ _MAGNITUDE
    return float(np.array(bits, np.int32).view(np.float32))


class Histogram:
    """How many keys of each stream fall into each bucket of 2¹⁷ consecutive ones."""

    def __init__(self, streams: int, *, signed: bool) -> None:
        self._lowest = -(_SIGNED_BUCKETS // 2) if signed else 0
        self.counts = torch.zeros(streams, _SIGNED_BUCKETS // 2 - self._lowest, dtype=torch.int64)

    def add(self, stream: int, keys: Int32[Tensor, " n"]) -> None:
        """Count a block's keys."""
        buckets = keys >> _LOW_BITS
        if self._lowest:
            buckets -= self._lowest
        self.counts[stream] += torch.bincount(buckets, minlength=self.counts.shape[1]).cpu()

    def join(self, later: Histogram) -> None:
        """Add what another histogram counted."""
        self.counts += later.counts

    @property
    def entries(self) -> int:
        """How many keys each stream has."""
        return int(self.counts[0].sum())

    def largest(self, stream: int) -> float:
        """Return a number that no key of a stream stands for more than; infinity at the worst."""
        filled = self.counts[stream].nonzero()
        bucket = self._lowest + int(filled[-1])
        return value_of(((bucket + 1) << _LOW_BITS) - 1) if bucket < _FINITE else math.inf

    def find(self, stream: int, ranks: Sequence[int]) -> list[Place]:
        """Return where the keys of descending ranks (0 is the largest) lie."""
        descending = self.counts[stream].flip(0).cumsum_(0)
        indices = torch.searchsorted(descending, torch.tensor(ranks), right=True).tolist()
        above = [int(descending[index - 1]) if index else 0 for index in indices]
        highest = self._lowest + self.counts.shape[1] - 1
        return [
            Place(highest - index, rank - before)
            for index, rank, before in zip(indices, ranks, above, strict=True)
        ]


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


@dataclass
class _Chunk:
    """The keys of one block in one bucket, and where in the block they are."""

    start: int
    keys: NDArray[np.int32]
    offsets: NDArray[np.int32]


@dataclass
class Candidates:
    """The keys in the buckets that hold the wanted ranks, per stream; zeros are passed over.

    Zeros are the lowest of their bucket, and there may be very many of them.
    """

    places: Sequence[Sequence[Place]]
    _found: dict[tuple[int, int], list[_Chunk]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stream, places in enumerate(self.places):
            for place in places:
                self._found[stream, place.bucket] = []

    def add(self, stream: int, keys: Int32[Tensor, " n"], start: int) -> None:
        """Keep of a block that begins at position `start` what may be at a rank."""
        numbers = keys.cpu().numpy()
        upper = numbers >> _LOW_BITS
        for bucket in {place.bucket for place in self.places[stream]}:
            offsets = np.flatnonzero(upper == bucket)
            chosen = numbers[offsets]
            if bucket == 0:
                offsets, chosen = offsets[chosen != 0], chosen[chosen != 0]
            if len(offsets):
                self._found[stream, bucket].append(_Chunk(start, chosen, offsets.astype(np.int32)))

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
    threshold = boundary.value
    if threshold == 0.0:
        return values.clone()
    below = float(np.nextafter(np.float32(threshold), np.float32(0.0)))
    split = min(max(boundary.last + 1 - start, 0), len(values))
    if split in (0, len(values)):
        return torch.nn.functional.hardshrink(values, below if split else threshold)
    kept = torch.empty_like(values)
    kept[:split] = torch.nn.functional.hardshrink(values[:split], below)
    kept[split:] = torch.nn.functional.hardshrink(values[split:], threshold)
    return kept
