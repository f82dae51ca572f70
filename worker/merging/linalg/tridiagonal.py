"""Symmetric eigenproblems on the CPU by LAPACK's single steps, made only as far as they are wanted.

torch and numpy make all eigenvectors or none. Of a task matrix all values and a quarter of the
vectors are wanted: reduced to tridiagonal form, its leading vectors are found there by
inverse iteration, and brought back.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from worker.merging.linalg.blas import call
from worker.merging.linalg.kernels import product

_BLOCK = 64
_REFLECTORS = 65 * _BLOCK
"""What dormtr wants beside a block of columns, in entries (LAPACK's TSIZE)."""
_APART = 8
_PART = 0.5
"""Up to this share of all vectors, inverse iteration is cheaper than dividing and conquering."""
_ORTHOGONAL = 1e-10
"""How far from orthonormal vectors by inverse iteration may be; eigenvalues that agree to more
digits than that need the other way."""


class Eigenproblem:
    """A symmetric matrix's eigenvalues, and as many of its leading eigenvectors as are wanted.

    Attributes:
        values: all eigenvalues, float64, descending.
    """

    def __init__(self, matrix: Float[Tensor, "n n"], *, complete: bool = False) -> None:
        """Solve for the float64 matrix on the CPU, of which the upper half is read.

        `complete` says that all vectors will be wanted, which then come with the values. Raises
        ArithmeticError if LAPACK finds no solution (it is given NaN or infinity).
        """
        n = self._n = len(matrix)
        self._form = _columns(n, n)
        self._form[:, :n] = matrix
        self._scales = _floats(max(1, n - 1))
        self._diagonal, self._beside = _floats(n), _floats(max(1, n - 1))
        work = _floats(n * _BLOCK)
        # The rows above the diagonal are the columns under it to LAPACK: its lower half.
        call("dsytrd", b"L", n, self._form, self._form.shape[1], self._diagonal, self._beside,
             self._scales, work, len(work))  # fmt: skip
        self._complete = complete
        self._all: Tensor | None = None
        self._some: Tensor | None = None
        if complete:
            self._ascending, self._all = self._conquer()
        else:
            self._ascending, beside = self._diagonal.clone(), self._beside.clone()
            call("dsterf", n, self._ascending, beside)
        self.values: Float[Tensor, " n"] = self._ascending.flip(0)

    def vectors(self, count: int) -> Float[Tensor, "n count"]:
        """Return the eigenvectors of the `count` largest eigenvalues in columns, float64."""
        if self._some is None or len(self._some) != count:
            self._some = self._bring_back(self._leading(count).flip(0))
        return self._some[:, : self._n].mT

    def _leading(self, count: int) -> Float[Tensor, "count padded"]:
        """Return the tridiagonal form's leading eigenvectors, one a row, ascending."""
        # By the count alone, not by what was asked before: a sweep has the bytes of single merges.
        if not self._complete and 0 < count <= _PART * self._n:
            found = self._iterate(count)
            if found is not None:
                return found
        if self._all is None:
            _, self._all = self._conquer()
        return self._all[self._n - count :]

    def _conquer(self) -> tuple[Float[Tensor, " n"], Float[Tensor, "n padded"]]:
        """Divide and conquer: return all values and vectors of the tridiagonal form."""
        n, values, beside = self._n, self._diagonal.clone(), self._beside.clone()
        vectors = _columns(n, n)
        work, whole = _floats(1 + 4 * n + n**2), _integers(3 + 5 * n)
        call("dstedc", b"I", n, values, beside, vectors, vectors.shape[1], work, len(work), whole,
             len(whole))  # fmt: skip
        return values, vectors

    def _iterate(self, count: int) -> Float[Tensor, "count padded"] | None:
        """Inverse iteration: return the leading vectors, None where they do not come out right."""
        n, found = self._n, _columns(count, self._n)
        one_block, its_end = torch.ones_like(_integers(n)), torch.full_like(_integers(n), n)
        try:
            call("dstein", n, self._diagonal, self._beside, count, self._ascending[n - count :],
                 one_block, its_end, found, found.shape[1], _floats(5 * n), _integers(n),
                 _integers(count))  # fmt: skip
        except ArithmeticError:
            return None
        rows = found[:, :n]
        off = product(rows, rows.mT)
        off.diagonal().sub_(1.0)
        return found if bool((off.abs_() <= _ORTHOGONAL).all()) else None

    def _bring_back(self, rows: Float[Tensor, "count padded"]) -> Float[Tensor, "count padded"]:
        """Turn the tridiagonal form's vectors into the matrix's, in place."""
        count = len(rows)
        if count and self._n > 1:
            work = _floats(count * _BLOCK + _REFLECTORS)
            call("dormtr", b"L", b"L", b"N", self._n, count, self._form, self._form.shape[1],
                 self._scales, rows, rows.shape[1], work, len(work))  # fmt: skip
        return rows


def _columns(count: int, length: int) -> Tensor:
    """Return room for columns in LAPACK's order, one a row.

    They are a few entries apart: at distances of a power of two they would fall on the same few
    lines of the cache.
    """
    return _floats(count, length + _APART)


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)


def _integers(count: int) -> Shaped[Tensor, " count"]:
    return torch.empty(count, dtype=torch.int32)
