"""Weighted sums over the experts, entry by entry, and their inner products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.kernels.library import LONG, POINTER, address, floats, function

_weighted_sum = function("weighted_sum", None, POINTER, LONG, LONG, POINTER, POINTER)
_add_inner_products = function("add_inner_products", None, POINTER, LONG, LONG, POINTER)


def weighted_sum(
    tensors: Float[Tensor, "experts n"], weights: Sequence[float], result: Float[Tensor, " n"]
) -> None:
    """Write Σ wᵢxᵢ into `result`."""
    _weighted_sum(address(tensors), *tensors.shape, floats(weights), address(result))


def add_inner_products(tensors: Float[Tensor, "experts n"], gram: NDArray[np.float64]) -> None:
    """Add ⟨xᵢ, xⱼ⟩ to the upper triangle of `gram`; products of float32 are exact in float64."""
    if gram.shape != (len(tensors), len(tensors)):
        raise ValueError(f"Inner products of {len(tensors)} rows do not fit into {gram.shape}.")
    _add_inner_products(address(tensors), *tensors.shape, address(gram, np.float64))
