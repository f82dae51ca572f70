"""Products of matrices in memory: the symmetric one at half the price, each in its own precision.

On the CPU by the project's kernel, on one thread, which takes float32 as float64 without a copy.
On a GPU everything is torch's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels import matrices
from worker.merging.kernels.products import multiply


def elsewhere(matrix: Tensor) -> bool:
    """Say whether products of it are torch's: those on a GPU, and batches."""
    return matrix.ndim > 2 or matrix.is_cuda


def add_symmetric(
    matrix: Float[Tensor, "m n"], total: Float[Tensor, "n n"]
) -> Float[Tensor, "n n"]:
    """Add MᵀM, in the dtype of `total`, to its upper triangle, and return it; on the CPU.

    Below the diagonal it may be anything.
    """
    if matrix.numel():
        multiply(matrix.mT, matrix, total, precision=total.dtype, add=True, upper=True)
    return total


def upper_product(matrix: Float[Tensor, "m n"], dtype: torch.dtype) -> Float[Tensor, "n n"]:
    """Return MᵀM in this dtype, on the CPU; below the diagonal it may be anything."""
    total = torch.empty((matrix.shape[1], matrix.shape[1]), dtype=dtype)
    if matrix.numel() == 0:
        return total.zero_()
    multiply(matrix.mT, matrix, total, precision=dtype, upper=True)
    return total


def mirror(total: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Copy the upper triangle into the lower one, and return the matrix."""
    if total.is_cuda:
        return total.triu_().add_(total.triu(1).mT)
    matrices.mirror(total)
    return total


def symmetric_product(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in the matrix's dtype; on the CPU symmetric to the bit, at half the cost."""
    if elsewhere(matrix):
        return matrix.mT @ matrix
    return mirror(upper_product(matrix, matrix.dtype))


def product(
    left: Float[Tensor, "*batch m k"],
    right: Float[Tensor, "*batch k n"],
    out: Float[Tensor, "m n"] | None = None,
) -> Float[Tensor, "*batch m n"]:
    """Return the product in the dtype of the right factor, or `out`.

    `out` is no factor, has contiguous rows, and on the CPU a dtype of its own.
    """
    if elsewhere(left) or elsewhere(right):
        left = left.to(right.dtype)
        return left @ right if out is None else torch.matmul(left, right, out=out)
    if out is None:
        out = right.new_empty((left.shape[0], right.shape[1]))
    if left.shape[1] == 0:
        return out.zero_()
    if out.numel():
        multiply(left, right, out, precision=right.dtype)
    return out
