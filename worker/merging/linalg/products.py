"""Products in float64 by row blocks, so that a tall float32 matrix is never copied whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

import worker.merging.linalg.blas  # noqa: F401 - one thread

_BLOCK_ELEMENTS = 1 << 20
"""Elements of a float64 block: 8 MiB stay in a core's share of the cache."""


def _row_slices(matrix: Float[Tensor, "*batch m n"]) -> Iterator[slice]:
    """Yield consecutive ranges of rows, about a million elements each (all rows on a GPU)."""
    rows = matrix.shape[-2]
    step = rows if matrix.is_cuda else max(256, _BLOCK_ELEMENTS // max(1, matrix.shape[-1]))
    for start in range(0, rows, max(1, step)):
        yield slice(start, start + step)


def symmetric_product(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in the matrix's dtype, symmetric to the bit on the CPU, at half a product's cost.

    numpy sees that both factors are one matrix and lets BLAS make one triangle; torch does not.
    """
    if matrix.ndim > 2 or matrix.is_cuda:
        return matrix.mT @ matrix
    # Of a matrix that BLAS cannot read as it lies, numpy would make two copies, and not see it.
    columns = (matrix if 1 in matrix.stride() else matrix.contiguous()).numpy()
    return torch.from_numpy(columns.T @ columns)


def gram(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in float64.

    The entries of float32 data are exact to float64 rounding, so that eigenvalues resolve singular
    values down to about 1e-8 of the largest: below float32's own resolution.
    """
    first, *others = _row_slices(matrix)
    result = symmetric_product(matrix[..., first, :].to(torch.float64))
    for rows in others:
        result += symmetric_product(matrix[..., rows, :].to(torch.float64))
    return result


def multiply(
    matrix: Float[Tensor, "*batch m n"], factor: Float[Tensor, "*batch n r"]
) -> Float[Tensor, "*batch m r"]:
    """Return M·F in float32, computed in the precision of F: float32, or float64 by row blocks."""
    if factor.dtype == torch.float32:
        return matrix @ factor
    result = factor.new_empty((*matrix.shape[:-1], factor.shape[-1]), dtype=torch.float32)
    for rows in _row_slices(matrix):
        result[..., rows, :] = matrix[..., rows, :].to(factor.dtype) @ factor
    return result


def multiply_in_place(
    matrix: Float[Tensor, "m n"], factor: Float[Tensor, "n n"]
) -> Float[Tensor, "m n"]:
    """Turn M into M·F by row blocks, in the precision of F, and return it."""
    for rows in _row_slices(matrix):
        matrix[rows] = matrix[rows].to(factor.dtype) @ factor
    return matrix
