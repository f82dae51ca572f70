"""Products in float64 by row blocks, so that a tall float32 matrix is never copied whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import add_symmetric, mirror, product

_BLOCK_ELEMENTS = 1 << 18
"""Elements of a float64 block: 2 MiB stay in a core's share of the cache."""


def _row_slices(matrix: Float[Tensor, "*batch m n"]) -> Iterator[slice]:
    """Yield consecutive ranges of rows, about as many elements each (all rows on a GPU)."""
    rows = matrix.shape[-2]
    step = rows if matrix.is_cuda else max(256, _BLOCK_ELEMENTS // max(1, matrix.shape[-1]))
    for start in range(0, rows, max(1, step)):
        yield slice(start, start + step)


def upper_gram(
    matrix: Float[Tensor, "*batch m n"], total: Float[Tensor, "*batch n n"] | None = None
) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in float64, added to `total` if given; below the diagonal it may be anything.

    The entries of float32 data are exact to float64 rounding, so that eigenvalues resolve singular
    values down to about 1e-8 of the largest: below float32's own resolution.
    """
    n = matrix.shape[-1]
    if total is None:
        total = matrix.new_zeros((*matrix.shape[:-2], n, n), dtype=torch.float64)
    for rows in _row_slices(matrix):
        block = matrix[..., rows, :].to(torch.float64)
        if matrix.ndim > 2 or matrix.is_cuda:
            total += block.mT @ block
        else:
            add_symmetric(block, total)
    return total


def gram(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in float64, symmetric to the bit on the CPU."""
    total = upper_gram(matrix)
    return total if matrix.ndim > 2 or matrix.is_cuda else mirror(total)


def multiply(
    matrix: Float[Tensor, "*batch m n"], factor: Float[Tensor, "*batch n r"]
) -> Float[Tensor, "*batch m r"]:
    """Return M·F in float32, computed in the precision of F: float32, or float64 by row blocks."""
    if factor.dtype == torch.float32:
        return product(matrix, factor)
    result = factor.new_empty((*matrix.shape[:-1], factor.shape[-1]), dtype=torch.float32)
    for rows in _row_slices(matrix):
        result[..., rows, :] = product(matrix[..., rows, :].to(factor.dtype), factor)
    return result


def multiply_in_place(
    matrix: Float[Tensor, "m n"], factor: Float[Tensor, "n n"]
) -> Float[Tensor, "m n"]:
    """Turn M into M·F by row blocks, in the precision of F, and return it."""
    for rows in _row_slices(matrix):
        matrix[rows] = product(matrix[rows].to(factor.dtype), factor)
    return matrix
