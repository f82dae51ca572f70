"""Products in float64 by row blocks, so that a tall float32 matrix is never copied whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 20
"""Elements of a float64 block: 8 MiB stay in a core's share of the cache."""
_PANELS = 4


def _row_slices(matrix: Float[Tensor, "*batch m n"]) -> Iterator[slice]:
    """Yield consecutive ranges of rows, about a million elements each (all rows on a GPU)."""
    rows = matrix.shape[-2]
    step = rows if matrix.is_cuda else max(256, _BLOCK_ELEMENTS // max(1, matrix.shape[-1]))
    for start in range(0, rows, max(1, step)):
        yield slice(start, start + step)


def gram(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in float64, symmetric to the bit.

    The entries of float32 data are exact to float64 rounding, so that eigenvalues resolve singular
    values down to about 1e-8 of the largest: below float32's own resolution. Only blocks on and
    above the diagonal are multiplied.
    """
    n = matrix.shape[-1]
    panel = max(64, -(-n // _PANELS))
    result = matrix.new_zeros((*matrix.shape[:-2], n, n), dtype=torch.float64)
    for rows in _row_slices(matrix):
        exact = matrix[..., rows, :].to(torch.float64)
        for start in range(0, n, panel):
            left, right = exact[..., start : start + panel], exact[..., start:]
            result[..., start : start + panel, start:] += left.mT @ right
    upper = result.triu_()
    return upper + upper.triu(1).mT


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
