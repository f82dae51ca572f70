"""Counting numbers by their upper bits, and finding those of one bucket.

A float32's bits order like the number: its key is an integer that orders as |x| does (`signed`
false) or as x does, 0 for 0 either way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.merging.kernels.compiled import kernel, part

LOW_BITS = 17
"""The bits above tell the bucket: exponent and 6 bits of the fraction, a table for the cache."""
MAGNITUDE = np.int32(0x7FFFFFFF)
_CHUNK = 1024
_ZERO = np.float32(0)


@part
def _key(bits, signed):
    if signed:
        return np.int32(((bits >> np.int32(31)) & MAGNITUDE) ^ bits)
    return np.int32(bits & MAGNITUDE)


@kernel("void(f4[::1], b1, i8, i8[::1])")
def count_buckets(
    values: NDArray[np.float32], signed: bool, lowest: int, counts: NDArray[np.int64]
) -> None:
    """Add to `counts` how many keys fall into each bucket, that of index 0 being `lowest`."""
    bits = values.view(np.int32)
    for j in range(len(bits)):
        counts[(_key(bits[j], signed) >> LOW_BITS) - lowest] += 1


@part
def _taken(bits, signed, start, marks, count, keys, places):
    """Append the keys that are marked and where they are; return how many there are now.

    Most are not: eight marks are looked at at once.
    """
    eights = marks.view(np.uint64)
    for eight in range(len(eights)):
        if eights[eight] != 0:
            for j in range(8 * eight, 8 * eight + 8):
                keys[count] = _key(bits[min(start + j, len(bits) - 1)], signed)
                places[count] = start + j
                count += marks[j]
    return count


@part
def _find(values, signed, low, high, keys, places):
    """Append the keys of what is from `low` to `high` and not 0; return how many there are."""
    bits = values.view(np.int32)
    marks = np.empty(_CHUNK, np.uint8)
    count = 0
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        marks[len(chunk) :] = 0
        for j in range(len(chunk)):
            number = chunk[j] if signed else abs(chunk[j])
            marks[j] = (number >= low) & (number <= high) & (number != _ZERO)
        count = _taken(bits, signed, start, marks, count, keys, places)
    return count


@kernel("i8(f4[::1], f4, f4, i4[::1], i4[::1])")
def find_between(
    values: NDArray[np.float32],
    low: float,
    high: float,
    keys: NDArray[np.int32],
    places: NDArray[np.int32],
) -> int:
    """Return how many values are from `low` to `high` and not 0.

    Their keys and where they are come first in `keys` and `places`, which are one longer than
    `values`. Zeros are left out as there may be very many.
    """
    return _find(values, True, low, high, keys, places)


@kernel("i8(f4[::1], f4, f4, i4[::1], i4[::1])")
def find_sizes_between(
    values: NDArray[np.float32],
    low: float,
    high: float,
    keys: NDArray[np.int32],
    places: NDArray[np.int32],
) -> int:
    """Return what `find_between` does, of magnitudes."""
    return _find(values, False, low, high, keys, places)


@kernel("UniTuple(i8, 2)(f4[::1], f4)")
def count_above(values: NDArray[np.float32], high: float) -> tuple[int, int]:
    """Return how many values are larger than `high`, and how many are 0."""
    above, zeros = 0, 0
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        larger, empty = np.int32(0), np.int32(0)
        for j in range(len(chunk)):
            larger += np.int32(chunk[j] > high)
        for j in range(len(chunk)):
            empty += np.int32(chunk[j] == _ZERO)
        above += larger
        zeros += empty
    return above, zeros


@kernel("UniTuple(i8, 2)(f4[::1], f4, f4, i4[::1], i4[::1])")
def find_sizes_outside(
    values: NDArray[np.float32],
    low: float,
    high: float,
    keys: NDArray[np.int32],
    places: NDArray[np.int32],
) -> tuple[int, int]:
    """Return how many magnitudes are at most `low`, or at least `high`, not 0; how many are 0.

    The keys of the first come first in `keys`; `keys` and `places` are as for `find_between`.
    """
    bits = values.view(np.int32)
    marks = np.empty(_CHUNK, np.uint8)
    count, zeros = 0, 0
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        marks[len(chunk) :] = 0
        empty = np.int32(0)
        for j in range(len(chunk)):
            number = abs(chunk[j])
            marks[j] = ((number <= low) | (number >= high)) & (number != _ZERO)
        for j in range(len(chunk)):
            empty += np.int32(chunk[j] == _ZERO)
        zeros += empty
        count = _taken(bits, False, start, marks, count, keys, places)
    return count, zeros


@kernel("f4(f4[::1])")
def largest(values: NDArray[np.float32]) -> float:
    """Return the largest value; there must be one."""
    found = values[0]
    for j in range(len(values)):
        found = max(found, values[j])
    return found


@kernel("i8(i8[::1], i8)")
def bucket_from_top(counts: NDArray[np.int64], rank: int) -> int:
    """Return the index of the bucket that holds a descending rank; -1 if there are fewer keys."""
    passed = 0
    for index in range(len(counts) - 1, -1, -1):
        passed += counts[index]
        if passed > rank:
            return index
    return -1


@part
def keep(bits, values, start, key, split, kept):
    """Write the entries from `start` on that are kept, else 0, into `kept`.

    Kept is what has a magnitude key above `key`, and before `split` also what has that key.
    """
    here = min(max(split - start, 0), len(kept))
    sizes, numbers = bits[start : start + len(kept)], values[start : start + len(kept)]
    if here == len(kept):
        for j in range(len(kept)):
            kept[j] = numbers[j] if np.int32(sizes[j] & MAGNITUDE) >= key else np.float32(0)
        return
    for j in range(len(kept)):
        kept[j] = numbers[j] if np.int32(sizes[j] & MAGNITUDE) > key else np.float32(0)
    for j in range(here):
        if np.int32(sizes[j] & MAGNITUDE) == key:
            kept[j] = numbers[j]


@kernel("void(f4[::1], i4, i8, f4[::1])")
def keep_largest(
    values: NDArray[np.float32], key: int, split: int, kept: NDArray[np.float32]
) -> None:
    """Write `values` into `kept`, 0 for what is smaller than `key` says, as `keep` has it."""
    keep(values.view(np.int32), values, 0, key, split, kept)
