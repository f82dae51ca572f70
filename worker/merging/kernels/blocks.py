"""What the engine does to every block: subtracts the base, adds it again, refuses NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.merging.kernels.compiled import kernel

_EXPONENT = np.int32(0x7F800000)
"""All of a float32's exponent bits are set in infinity and NaN only."""

FINITE, EQUAL = 1, 2

_CACHED = 4096
"""Entries that stay in a core's first cache while they are scaled by one λ after the other."""


@kernel("i8(f4[:, ::1])")
def inspect(rows: NDArray[np.float32]) -> int:
    """Return FINITE if all entries are, plus EQUAL if all rows hold the same bits."""
    bits = rows.view(np.int32)
    first = bits[0]
    worst, differing = np.int32(0), np.int32(0)
    for i in range(len(bits)):
        row = bits[i]
        for j in range(len(row)):
            worst = max(worst, row[j] & _EXPONENT)
            differing |= row[j] ^ first[j]
    return (worst != _EXPONENT) * FINITE + (differing == 0) * EQUAL


@kernel("i8(f4[:, ::1])")
def subtract_first(rows: NDArray[np.float32]) -> int:
    """Subtract the first row from the others in place; return what `inspect` said before."""
    bits = rows.view(np.int32)
    first, base = bits[0], rows[0]
    worst, differing = np.int32(0), np.int32(0)
    for j in range(len(first)):
        worst = max(worst, first[j] & _EXPONENT)
    for i in range(1, len(bits)):
        row, values = bits[i], rows[i]
        for j in range(len(row)):
            worst = max(worst, row[j] & _EXPONENT)
            differing |= row[j] ^ first[j]
            values[j] -= base[j]
    return (worst != _EXPONENT) * FINITE + (differing == 0) * EQUAL


@kernel("b1(f4[::1])")
def all_finite(values: NDArray[np.float32]) -> bool:
    """Say whether no entry is NaN or infinite."""
    bits = values.view(np.int32)
    worst = np.int32(0)
    for j in range(len(bits)):
        worst = max(worst, bits[j] & _EXPONENT)
    return bool(worst != _EXPONENT)


@kernel("b1(f4[::1], f4[::1], f4[::1], f4[:, ::1])")
def add_scaled(
    base: NDArray[np.float32],
    scales: NDArray[np.float32],
    values: NDArray[np.float32],
    results: NDArray[np.float32],
) -> bool:
    """Write base + scale·values into a row of `results` for each scale; say if all is finite."""
    worst = np.int32(0)
    for first in range(0, len(base), _CACHED):
        last = min(first + _CACHED, len(base))
        start, change = base[first:last], values[first:last]
        for i in range(len(scales)):
            result, scale = results[i, first:last], scales[i]
            bits = result.view(np.int32)
            for j in range(len(start)):
                result[j] = start[j] + scale * change[j]
                worst = max(worst, bits[j] & _EXPONENT)
    return bool(worst != _EXPONENT)
