"""Trimmed sums: over the experts that agree in sign (TIES, SCE), or within a band of sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.merging.kernels.compiled import kernel
from worker.merging.kernels.ranks import keep

_CHUNK = 1024
_ZERO = np.float32(0)


@kernel("i8(f4[:, ::1], f4[::1], b1, i4[::1], i8[::1], b1, f4[::1])")
def agreeing_sum(
    tensors: NDArray[np.float32],
    weights: NDArray[np.float32],
    weighted_votes: bool,
    keys: NDArray[np.int32],
    splits: NDArray[np.int64],
    normalize: bool,
    result: NDArray[np.float32],
) -> int:
    """Write Σ wᵢxᵢ over the i whose wᵢxᵢ has the elected sign; return how many those are.

    Elected is the sign of Σ xᵢ, or with `weighted_votes` of Σ wᵢxᵢ; a sum of 0 counts as positive.
    xᵢ is trimmed first: kept are magnitudes above keys[i], before splits[i] also that one. With
    `normalize` the sum is divided by Σ wᵢ over the same i, 0 for 0.
    """
    bits = tensors.view(np.int32)
    count = len(tensors)
    votes = np.empty((count, _CHUNK), np.float32)
    total = np.empty(_CHUNK, np.float32)
    divisor = np.empty(_CHUNK, np.float32)
    agreeing = 0
    for start in range(0, len(result), _CHUNK):
        width = min(_CHUNK, len(result) - start)
        merged = result[start : start + width]
        total[:width] = _ZERO
        divisor[:width] = _ZERO
        merged[:] = _ZERO
        for i in range(count):
            vote, weight = votes[i, :width], weights[i]
            keep(bits[i], tensors[i], start, keys[i], splits[i], vote)
            for j in range(width):
                product = vote[j] * weight
                total[j] += product if weighted_votes else vote[j]
                vote[j] = product
        for i in range(count):
            vote, weight = votes[i, :width], weights[i]
            along = np.int32(0)
            for j in range(width):
                value = vote[j]
                agrees = (value > _ZERO) if total[j] >= _ZERO else (value < _ZERO)
                merged[j] += value if agrees else _ZERO
                divisor[j] += weight if agrees else _ZERO
                along += np.int32(agrees)
            agreeing += along
        if normalize:
            for j in range(width):
                merged[j] = merged[j] / divisor[j] if divisor[j] != _ZERO else _ZERO
    return agreeing


@kernel("void(f4[:, ::1], f4[::1], i4[:, ::1], i8[:, ::1], f4[::1])")
def banded_sum(
    tensors: NDArray[np.float32],
    weights: NDArray[np.float32],
    keys: NDArray[np.int32],
    splits: NDArray[np.int64],
    result: NDArray[np.float32],
) -> None:
    """Write Σ wᵢxᵢ into `result`, xᵢ 0 outside its band.

    In it is what `keep` keeps by keys[i, 0] and splits[i, 0], but not by keys[i, 1] and
    splits[i, 1].
    """
    bits = tensors.view(np.int32)
    kept = np.empty(_CHUNK, np.float32)
    large = np.empty(_CHUNK, np.float32)
    for start in range(0, len(result), _CHUNK):
        width = min(_CHUNK, len(result) - start)
        total = result[start : start + width]
        total[:] = _ZERO
        for i in range(len(tensors)):
            weight = weights[i]
            keep(bits[i], tensors[i], start, keys[i, 0], splits[i, 0], kept[:width])
            keep(bits[i], tensors[i], start, keys[i, 1], splits[i, 1], large[:width])
            for j in range(width):
                total[j] += weight * (kept[j] - large[j])


@kernel("void(f4[:, ::1], f4[::1])")
def spread(tensors: NDArray[np.float32], result: NDArray[np.float32]) -> None:
    """Write each entry's standard deviation over the experts; 0 exactly where all are equal.

    Of differences to the first expert, brought near 1 by a power of two for each chunk, so that no
    square overflows; what is 2⁷⁵ times smaller than the largest beside it counts as 0.
    """
    others, share = len(tensors) - 1, np.float32(1.0 / len(tensors))
    off = np.empty((max(1, others), _CHUNK), np.float32)
    mean, squares = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    for start in range(0, len(result), _CHUNK):
        width = min(_CHUNK, len(result) - start)
        first = tensors[0, start : start + width]
        largest = _ZERO
        for i in range(others):
            row, difference = tensors[i + 1, start : start + width], off[i, :width]
            for j in range(width):
                difference[j] = row[j] - first[j]
                largest = max(largest, abs(difference[j]))
        if largest == _ZERO:
            result[start : start + width] = _ZERO
            continue
        power = min(max(-np.floor(np.log2(np.float64(largest))), -120.0), 120.0)
        scale, back = np.float32(2.0**power), np.float32(2.0**-power)
        mean[:width] = _ZERO
        for i in range(others):
            difference = off[i, :width]
            for j in range(width):
                difference[j] *= scale
                mean[j] += difference[j]
        for j in range(width):
            mean[j] *= share
            squares[j] = mean[j] * mean[j]
        for i in range(others):
            difference = off[i, :width]
            for j in range(width):
                squares[j] += (difference[j] - mean[j]) * (difference[j] - mean[j])
        for j in range(width):
            result[start + j] = np.sqrt(squares[j] * share) * back


@kernel("void(f4[:, ::1], f4[::1], i4, i8, f8[::1])", reorder=True)
def add_energies(
    tensors: NDArray[np.float32],
    ranked: NDArray[np.float32],
    key: int,
    split: int,
    energies: NDArray[np.float64],
) -> None:
    """Add to `energies` each expert's Σ xᵢ² over the entries that `keep` keeps of `ranked`."""
    bits = ranked.view(np.int32)
    kept = np.empty(_CHUNK, np.float32)
    for start in range(0, len(ranked), _CHUNK):
        width = min(_CHUNK, len(ranked) - start)
        for i in range(len(tensors)):
            keep(bits, tensors[i], start, key, split, kept[:width])
            total = 0.0
            for j in range(width):
                total += np.float64(kept[j]) * np.float64(kept[j])
            energies[i] += total


@kernel("void(f4[::1], f4[::1], i4, i8)")
def clear_unselected(
    values: NDArray[np.float32], ranked: NDArray[np.float32], key: int, split: int
) -> None:
    """Set `values` to 0 where `keep` does not keep what is in `ranked`."""
    bits = ranked.view(np.int32)
    kept = np.empty(_CHUNK, np.float32)
    for start in range(0, len(ranked), _CHUNK):
        width = min(_CHUNK, len(ranked) - start)
        keep(bits, ranked, start, key, split, kept[:width])
        for j in range(width):
            if kept[j] == _ZERO:
                values[start + j] = _ZERO
