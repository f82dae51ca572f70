"""Products in float64 of float32 matrices, which on the CPU are never copied whole."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import (
    add_symmetric,
    elsewhere,
    mirror,
    product,
    upper_product,
)

_ROWS = 512


def upper_gram(
    matrix: Float[Tensor, "*batch m n"], total: Float[Tensor, "*batch n n"] | None = None
) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in float64, added to `total` if given; below the diagonal it may be anything.

    The entries of float32 data are exact to float64 rounding, so that eigenvalues resolve singular
    values down to about 1e-8 of the largest: below float32's own resolution.
    """
    if elsewhere(matrix):
        exact = matrix.to(torch.float64)
        squares = exact.mT @ exact
        return squares if total is None else total.add_(squares)
    if total is not None:
        return add_symmetric(matrix, total)
    return upper_product(matrix, torch.float64)


def gram(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in float64, symmetric to the bit on the CPU."""
    total = upper_gram(matrix)
    return total if elsewhere(matrix) else mirror(total)


def multiply(
    matrix: Float[Tensor, "*batch m n"], factor: Float[Tensor, "*batch n r"]
) -> Float[Tensor, "*batch m r"]:
    """Return M·F in float32, computed in the precision of F, float32 or float64."""
    if elsewhere(matrix):
        return product(matrix, factor).float()
    result = torch.empty((len(matrix), factor.shape[1]), dtype=torch.float32)
    return product(matrix, factor, result)


def multiply_in_place(
    matrix: Float[Tensor, "m n"], factor: Float[Tensor, "n n"]
) -> Float[Tensor, "m n"]:
    """Turn M into M·F by row blocks, in the precision of F, and return it."""
    for rows in (matrix,) if elsewhere(matrix) else matrix.split(_ROWS):
        rows.copy_(product(rows, factor))
    return matrix
