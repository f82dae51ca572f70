"""Symmetric eigenproblems on the CPU by LAPACK's own three steps, the last made only in part.

torch and numpy make all eigenvectors or none. Of a task matrix a quarter is wanted, or the values
alone: reduced to tridiagonal form and solved there, they are brought back for as many as are asked
for.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.blas import call

_BLOCK = 64
_REFLECTORS = 65 * _BLOCK
"""What dormtr wants beside a block of columns, in entries (LAPACK's TSIZE)."""
_APART = 8


class Eigenproblem:
    """A symmetric matrix's eigenvalues, and as many of its leading eigenvectors as are wanted."""

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        """Solve for the float64 matrix on the CPU, of which the upper half is read.

        The work is 4/3·n³ operations for the tridiagonal form and about as many for its vectors.
        Raises ArithmeticError if LAPACK finds no solution (it is given NaN or infinity).
        """
        n = self._n = len(matrix)
        self._form, self._scales, diagonal, beside = _tridiagonal(matrix)
        self._vectors = _columns(n, n)
        work, whole = _floats(1 + 4 * n + n**2), torch.empty(3 + 5 * n, dtype=torch.int32)
        call("dstedc", b"I", n, diagonal, beside, self._vectors, self._vectors.shape[1], work,
             len(work), whole, len(whole))  # fmt: skip
        self.values: Float[Tensor, " n"] = diagonal.flip(0)
        """All eigenvalues, float64, descending."""

    def vectors(self, count: int) -> Float[Tensor, "n count"]:
        """Return the eigenvectors of the `count` largest eigenvalues in columns, float64."""
        # LAPACK's order is ascending.
        chosen = self._vectors[self._n - count :].flip(0)
        if count and self._n > 1:
            work = _floats(count * _BLOCK + _REFLECTORS)
            call("dormtr", b"L", b"L", b"N", self._n, count, self._form, self._form.shape[1],
                 self._scales, chosen, chosen.shape[1], work, len(work))  # fmt: skip
        return chosen[:, : self._n].mT


def eigenvalues(matrix: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Return all eigenvalues, float64, descending, at half the price of an `Eigenproblem`."""
    _, _, diagonal, beside = _tridiagonal(matrix)
    call("dsterf", len(diagonal), diagonal, beside)
    return diagonal.flip(0)


def _tridiagonal(matrix: Float[Tensor, "n n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return LAPACK's reflectors and their scales, and the diagonal and the one beside it."""
    n = len(matrix)
    form = _columns(n, n)
    form[:, :n] = matrix
    scales, diagonal, beside = _floats(max(1, n - 1)), _floats(n), _floats(max(1, n - 1))
    work = _floats(n * _BLOCK)
    # The rows above the diagonal are the columns under it to LAPACK: its lower half.
    call("dsytrd", b"L", n, form, form.shape[1], diagonal, beside, scales, work, len(work))
    return form, scales, diagonal, beside


def _columns(count: int, length: int) -> Tensor:
    """Return room for columns in LAPACK's order, one a row.

    They are a few entries apart: at distances of a power of two they would fall on the same few
    lines of the cache.
    """
    return _floats(count, length + _APART)


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)
