"""Symmetric eigenproblems on the CPU in single steps, made only as far as they are wanted.

torch and numpy make all eigenvectors or none. Of a task matrix all values and a quarter of the
vectors are wanted: reduced to tridiagonal form, its leading vectors are found there one by one, and
brought back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.tridiagonal import (
    TridiagonalForm,
    eigenvalues,
    eigenvectors,
    largest_overlap,
)
from worker.merging.linalg.kernels import product, symmetric_product

_APART = 8
_EPSILON, _TINY = 2.0**-52, 1e-300
_ORTHOGONAL = 1e-10
"""How far from orthonormal vectors may be."""
_PESSIMISM = 1e4
"""By how much vectors may be better than their closest eigenvalues promise: the smaller ones of a
Gram matrix are more exact than its largest says, and so are their vectors."""
_ROUNDINGS = 32
"""By how many roundings of the largest eigenvalue one may be off (22 were seen)."""
_PART = 0.5
_NEARLY, _CORRECTIONS = 1e-3, 3
"""Up to this they can be made so: what is off are mixtures of vectors whose eigenvalues agree to
all digits but a few, and as good as those. Eigenvalues that agree to more need the other way."""


class Eigenproblem:
    """A symmetric matrix's eigenvalues, and as many of its leading eigenvectors as are wanted."""

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        """Reduce the float64 matrix on the CPU, of which the upper half is read."""
        self._n = len(matrix)
        self._form = TridiagonalForm(matrix)
        self._some: Tensor | None = None

    @classmethod
    def solved(cls, matrices: Sequence[Float[Tensor, "n n"]]) -> list[Eigenproblem]:
        """Return the problems of up to `TOGETHER` matrices of one size.

        Their eigenvalues are found in the time of one matrix's.
        """
        problems = [cls(matrix) for matrix in matrices]
        found = eigenvalues([problem._form for problem in problems])
        for problem, ascending in zip(problems, found, strict=True):
            problem._ascending = ascending
        return problems

    @property
    def values(self) -> Float[Tensor, " n"]:
        """All eigenvalues, float64, descending.

        Raises ArithmeticError if there are none (of a matrix with NaN or infinity in it).
        """
        return self._ascending.flip(0)

    @cached_property
    def _ascending(self) -> Float[Tensor, " n"]:
        return eigenvalues([self._form])[0]

    def vectors(self, count: int) -> Float[Tensor, "n count"]:
        """Return the eigenvectors of the `count` largest eigenvalues in columns, float64."""
        if self._some is None or len(self._some) != count:
            self._some = self._leading(count)
            self._form.bring_back(self._some)
        return self._some[:, : self._n].mT

    def combined(self, weights: Float[Tensor, " count"]) -> Float[Tensor, "n n"]:
        """Return Σ wᵢ·vᵢvᵢᵀ of the leading eigenvectors, float64; no weight is negative."""
        vectors = self._leading(len(weights))
        vectors.mul_(weights.sqrt()[:, None])
        self._form.bring_back(vectors)
        return symmetric_product(vectors[:, : self._n])

    def _leading(self, count: int) -> Float[Tensor, "count padded"]:
        """Return the tridiagonal form's leading eigenvectors, one a row, a copy of their own."""
        if count == 0:
            return _columns(0, self._n)
        found = self._one_by_one(count)
        return self._all[self._n - count :].flip(0) if found is None else found

    @cached_property
    def _all(self) -> Float[Tensor, "n padded"]:
        """Divide and conquer: return all vectors of the tridiagonal form, in ascending order."""
        n, beside = self._n, self._form.beside[: self._n - 1]
        # The lower half is read.
        dense = torch.diag(self._form.diagonal) + torch.diag(beside, -1)
        vectors = _columns(n, n)
        vectors[:, :n] = torch.linalg.eigh(dense).eigenvectors.mT
        return vectors

    def _one_by_one(self, count: int) -> Float[Tensor, "count padded"] | None:
        """Return the leading vectors, None where eigenvalues are too close for that."""
        n, found = self._n, _columns(count, self._n)
        values, rows = self.values[:count], found[:, :n]
        # Where mending would cost what dividing and conquering does, it is not begun.
        corrections = _CORRECTIONS if count <= _PART * n else 0
        largest = float(self._ascending.abs().max())
        likely = _EPSILON * largest / max(_least_gap(values), _TINY)
        if likely > (_NEARLY if corrections else _PESSIMISM * _ORTHOGONAL):
            return None
        eigenvectors(self._form.diagonal, self._form.beside[: n - 1], values, found)
        # Vectors further apart are as orthogonal as that, whatever rounding did to them.
        reach = _ROUNDINGS * _EPSILON * largest / _ORTHOGONAL
        if largest_overlap(found, values, n, reach) <= _ORTHOGONAL:
            return found
        for _ in range(corrections):
            off = symmetric_product(rows.mT)
            off.diagonal().sub_(1.0)
            worst = float(off.abs().max())
            if worst <= _ORTHOGONAL:
                return found
            if not worst <= _NEARLY:
                break
            # A Newton-Schulz step makes what is off by e off by about e².
            rows -= 0.5 * product(off, rows)
        return None


def _least_gap(values: Float[Tensor, " n"]) -> float:
    return -float(values.diff().max()) if len(values) > 1 else math.inf


def _columns(count: int, length: int) -> Tensor:
    """Return room for vectors, one a row.

    They are a few entries apart: at distances of a power of two they would fall on the same few
    lines of the cache.
    """
    return torch.empty((count, length + _APART), dtype=torch.float64)
