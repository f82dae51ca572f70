"""Products of matrices in memory by BLAS: the symmetric one at half the price, both into place.

torch's BLAS multiplies both triangles of MᵀM, and on AMD's processors has no AVX-512. On a GPU
everything is torch's.
"""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels import matrices
from worker.merging.linalg.blas import call

_LETTERS = {torch.float32: "s", torch.float64: "d"}
_ZERO = {"s": ctypes.byref(ctypes.c_float(0.0)), "d": ctypes.byref(ctypes.c_double(0.0))}
_ONE = {"s": ctypes.byref(ctypes.c_float(1.0)), "d": ctypes.byref(ctypes.c_double(1.0))}


def add_symmetric(matrix: Float[Tensor, "m n"], total: Float[Tensor, "n n"]) -> None:
    """Add MᵀM to the upper triangle of the contiguous `total`, of the same dtype, on the CPU."""
    rows, n = matrix.shape
    if matrix.numel() == 0:
        return
    data, length, transposed = _as_stored(matrix)
    letter = _LETTERS[matrix.dtype]
    # What is stored row by row is the transpose to BLAS, and the upper triangle the lower one.
    call(f"{letter}syrk", b"L", b"T" if transposed else b"N", n, rows, _ONE[letter],
         data, length, _ONE[letter], total, n)  # fmt: skip


def mirror(total: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Copy the upper triangle into the lower one, and return the matrix."""
    if total.is_cuda:
        return total.triu_().add_(total.triu(1).mT)
    matrices.mirror(total)
    return total


def symmetric_product(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch n n"]:
    """Return MᵀM in the matrix's dtype; on the CPU symmetric to the bit, at half the cost."""
    if matrix.ndim > 2 or matrix.is_cuda:
        return matrix.mT @ matrix
    total = matrix.new_zeros((matrix.shape[1], matrix.shape[1]))
    add_symmetric(matrix, total)
    return mirror(total)


def product(
    left: Float[Tensor, "*batch m k"],
    right: Float[Tensor, "*batch k n"],
    out: Float[Tensor, "m n"] | None = None,
) -> Float[Tensor, "*batch m n"]:
    """Return the product of matrices of one dtype; `out` is contiguous, and no factor."""
    if left.ndim > 2 or right.ndim > 2 or left.is_cuda or 0 in (*left.shape, *right.shape):
        return left @ right if out is None else torch.matmul(left, right, out=out)
    if out is None:
        out = left.new_empty((left.shape[0], right.shape[1]))
    (a, a_length, a_transposed), (b, b_length, b_transposed) = map(_as_stored, (left, right))
    letter = _LETTERS[left.dtype]
    # The transposes are multiplied in reverse: (A·B)ᵀ = Bᵀ·Aᵀ.
    call(f"{letter}gemm", b"T" if b_transposed else b"N", b"T" if a_transposed else b"N",
         right.shape[1], left.shape[0], left.shape[1], _ONE[letter], b, b_length,
         a, a_length, _ZERO[letter], out, out.shape[1])  # fmt: skip
    return out


def _as_stored(matrix: Float[Tensor, "m n"]) -> tuple[Tensor, int, bool]:
    """Return the matrix as BLAS can read it, a line's length, and whether lines are columns."""
    rows, columns = matrix.shape
    down, across = matrix.stride()
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return matrix, max(down, columns, 1) if rows > 1 else max(columns, 1), False
    if (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return matrix, max(across, rows, 1) if columns > 1 else max(rows, 1), True
    return matrix.contiguous(), max(columns, 1), False
