"""What the engine does to every block: subtracts the base, adds it again, refuses NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.merging.kernels.compiled import kernel

_EXPONENT = np.int32(0x7F800000)
"""All of a float32's exponent bits are set in infinity and NaN only."""

FINITE, EQUAL = 1, 2


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


@kernel("void(f4[::1], f4, f4[::1], f4[::1])")
def add_scaled(
    base: NDArray[np.float32],
    scale: float,
    values: NDArray[np.float32],
    result: NDArray[np.float32],
) -> None:
    """Write base + scale·values into `result`, which may be `values`."""
    for j in range(len(base)):
        result[j] = base[j] + scale * values[j]
