"""Counting numbers by their upper bits, and finding those of one bucket.

A float32's bits order like the number: its key is an integer that orders as |x| does (`signed`
false) or as x does, 0 for 0 either way.
"""

from __future__ import annotations

import ctypes

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.kernels.library import FLOAT, INT, LONG, POINTER, address, function

LOW_BITS = 17
"""The bits above tell the bucket: exponent and 6 bits of the fraction, a table for the cache."""
MAGNITUDE = 0x7FFFFFFF

_Keys = NDArray[np.int32]

_count_buckets = function("count_buckets", None, POINTER, LONG, INT, LONG, POINTER)
_find = {
    signed: function(name, LONG, POINTER, LONG, FLOAT, FLOAT, POINTER, POINTER)
    for signed, name in ((True, "find_between"), (False, "find_sizes_between"))
}
_count_above = function("count_above", None, POINTER, LONG, FLOAT, POINTER)
_find_sizes_outside = function(
    "find_sizes_outside", LONG, POINTER, LONG, FLOAT, FLOAT, POINTER, POINTER, POINTER
)
_largest = function("largest", FLOAT, POINTER, LONG)
_bucket_from_top = function("bucket_from_top", LONG, POINTER, LONG, LONG)
_keep_largest = function("keep_largest", None, POINTER, LONG, INT, LONG, POINTER)


def count_buckets(
    values: Float[Tensor, " n"], signed: bool, lowest: int, counts: NDArray[np.int64]
) -> None:
    """Add to `counts` how many keys fall into each bucket, that of index 0 being `lowest`."""
    _count_buckets(address(values), len(values), signed, lowest, address(counts, np.int64))


def find_between(
    values: Float[Tensor, " n"], low: float, high: float, *, signed: bool
) -> tuple[_Keys, _Keys]:
    """Return the keys of what is from `low` to `high` and not 0, and where they are.

    Of the numbers, or without `signed` of their magnitudes. Zeros are left out as there may be
    very many.
    """
    keys, places = np.empty((2, len(values)), np.int32)
    count = _find[signed](
        address(values), len(values), low, high, address(keys, np.int32), address(places, np.int32)
    )
    return keys[:count].copy(), places[:count].copy()


def count_above(values: Float[Tensor, " n"], high: float) -> tuple[int, int]:
    """Return how many values are larger than `high`, and how many are 0."""
    found = (ctypes.c_int64 * 2)()
    _count_above(address(values), len(values), high, found)
    return found[0], found[1]


def find_sizes_outside(values: Float[Tensor, " n"], low: float, high: float) -> tuple[_Keys, int]:
    """Return the keys of magnitudes at most `low`, or at least `high`, not 0; how many are 0."""
    keys, places = np.empty((2, len(values)), np.int32)
    zeros = ctypes.c_int64()
    count = _find_sizes_outside(
        address(values), len(values), low, high,
        address(keys, np.int32), address(places, np.int32), ctypes.byref(zeros),
    )  # fmt: skip
    return keys[:count].copy(), zeros.value


def largest(values: Float[Tensor, " n"]) -> float:
    """Return the largest value; there must be one."""
    found: float = _largest(address(values), len(values))
    return found


def bucket_from_top(counts: NDArray[np.int64], rank: int) -> int:
    """Return the index of the bucket that holds a descending rank; -1 if there are fewer keys."""
    index: int = _bucket_from_top(address(counts, np.int64), len(counts), rank)
    return index


def keep_largest(
    values: Float[Tensor, " n"], key: int, split: int, kept: Float[Tensor, " n"]
) -> None:
    """Write `values` into `kept`, 0 for what is smaller than `key` says.

    Kept is what has a magnitude key above `key`, and of the first `split` also what has that key.
    """
    _keep_largest(address(values), len(values), key, split, address(kept))
