"""Weighted sums over the experts, entry by entry, and their inner products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.merging.kernels.compiled import kernel

_CHUNK = 2048
"""Entries whose sums stay in the innermost cache while the experts pass."""


@kernel("void(f4[:, ::1], f4[::1], f4[::1])")
def weighted_sum(
    tensors: NDArray[np.float32], weights: NDArray[np.float32], result: NDArray[np.float32]
) -> None:
    """Write Σ wᵢxᵢ into `result`."""
    for start in range(0, len(result), _CHUNK):
        total = result[start : start + _CHUNK]
        weight, row = weights[0], tensors[0, start : start + _CHUNK]
        for j in range(len(total)):
            total[j] = weight * row[j]
        for i in range(1, len(tensors)):
            weight, row = weights[i], tensors[i, start : start + _CHUNK]
            for j in range(len(total)):
                total[j] += weight * row[j]


@kernel("void(f4[:, ::1], f8[:, ::1])", reorder=True)
def add_inner_products(tensors: NDArray[np.float32], gram: NDArray[np.float64]) -> None:
    """Add ⟨xᵢ, xⱼ⟩ to the upper triangle of `gram`; products of float32 are exact in float64."""
    width = tensors.shape[1]
    for start in range(0, width, _CHUNK):
        for i in range(len(tensors)):
            first = tensors[i, start : start + _CHUNK]
            for k in range(i, len(tensors)):
                second = tensors[k, start : start + _CHUNK]
                total = 0.0
                for j in range(len(first)):
                    total += np.float64(first[j]) * np.float64(second[j])
                gram[i, k] += total
