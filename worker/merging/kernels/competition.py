"""The competition scores of PCB-Merging, and the mean that they weigh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.merging.kernels.compiled import kernel, part

_CHUNK = 1024
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_LEAST_EXPONENT = np.float32(-87)
"""exp of less is under the smallest normal float32: taken as 0."""
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""ln 2 in two parts: multiples of the first are exact."""
# A minimax polynomial of (exp r − 1 − r)/r² for |r| ≤ ln 2 / 2 (Moshier's Cephes, expf).
_C5, _C4, _C3 = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
)
_C2, _C1, _C0 = (
    np.float32(4.1665795894e-2),
    np.float32(1.6666665459e-1),
    np.float32(5.0000001201e-1),
)


@part
def _total(tensors, start, total):
    """Write Σⱼdⱼ of a chunk."""
    total[:] = _ZERO
    for i in range(len(tensors)):
        row = tensors[i, start : start + len(total)]
        for j in range(len(total)):
            total[j] += row[j]


@part
def _score(row, total, low, high, count, linear, powers, scores):
    """Write exp(N·(norm(A)² − 1))·tanh(d·Σⱼdⱼ) of a chunk; `powers` is room for as many."""
    stretch = np.float32(np.sqrt(count)) / (high - low)
    for j in range(len(row)):
        size = min(max(abs(row[j]), low), high)
        size = (size - low) * stretch
        exponent = max(size * size - count, _LEAST_EXPONENT)
        power = np.floor(exponent * _LOG2_E + _HALF)
        rest = exponent - power * _LN2_HIGH - power * _LN2_LOW
        curve = ((((_C5 * rest + _C4) * rest + _C3) * rest + _C2) * rest + _C1) * rest + _C0
        powers[j] = (np.int32(power) + np.int32(127)) << np.int32(23)
        scores[j] = curve * rest * rest + rest + _ONE if exponent > _LEAST_EXPONENT else _ZERO
    factors = powers.view(np.float32)
    if linear:
        for j in range(len(row)):
            scores[j] = scores[j] * factors[j] * (row[j] * total[j]) + _ZERO
    else:
        for j in range(len(row)):
            scores[j] = scores[j] * factors[j] * np.tanh(row[j] * total[j]) + _ZERO


@kernel("void(f4[:, ::1], f4[::1], f4[::1], b1, f4[:, ::1])")
def competition_scores(
    tensors: NDArray[np.float32],
    lows: NDArray[np.float32],
    highs: NDArray[np.float32],
    linear: bool,
    scores: NDArray[np.float32],
) -> None:
    """Write each expert's scores; 0 where all its sizes are equal, never a negative zero.

    Sizes are clipped between lows[i] and highs[i]; `linear` says that tanh of any product is the
    product, to float32 rounding.
    """
    total, powers = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.int32)
    count = np.float32(len(tensors))
    for start in range(0, tensors.shape[1], _CHUNK):
        width = min(_CHUNK, tensors.shape[1] - start)
        _total(tensors, start, total[:width])
        for i in range(len(tensors)):
            into = scores[i, start : start + width]
            if highs[i] <= lows[i]:
                into[:] = _ZERO
                continue
            row = tensors[i, start : start + width]
            _score(row, total[:width], lows[i], highs[i], count, linear, powers[:width], into)


@kernel("void(f4[:, ::1], f4[::1], f4[::1], b1, f4[::1], f4[::1], f4, f4[::1])")
def competition_mean(
    tensors: NDArray[np.float32],
    lows: NDArray[np.float32],
    highs: NDArray[np.float32],
    linear: bool,
    least: NDArray[np.float32],
    most: NDArray[np.float32],
    least_scale: float,
    result: NDArray[np.float32],
) -> None:
    """Write Σ sign(dᵢ)Aᵢ·scaleᵢ / max(Σ scaleᵢ, least_scale).

    scaleᵢ goes from 0 at a score of least[i] to 1 at most[i].
    """
    total, powers = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.int32)
    scores, divisor = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    count = np.float32(len(tensors))
    for start in range(0, len(result), _CHUNK):
        width = min(_CHUNK, len(result) - start)
        merged = result[start : start + width]
        merged[:] = _ZERO
        divisor[:width] = _ZERO
        _total(tensors, start, total[:width])
        for i in range(len(tensors)):
            low, high, bottom, span = lows[i], highs[i], least[i], most[i] - least[i]
            if high <= low or span <= _ZERO:
                continue
            row, score = tensors[i, start : start + width], scores[:width]
            _score(row, total[:width], low, high, count, linear, powers[:width], score)
            for j in range(width):
                scale = max(score[j] - bottom, _ZERO) / span
                size = min(max(abs(row[j]), low), high)
                divisor[j] += scale
                signed = size if row[j] > _ZERO else (-size if row[j] < _ZERO else _ZERO)
                merged[j] += signed * scale
        for j in range(width):
            merged[j] /= max(divisor[j], least_scale)
