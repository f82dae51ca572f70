"""Symmetric matrices in tridiagonal form, and the eigenvectors of those."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.library import DOUBLE, INT, LONG, POINTER, address, function

_make = function(
    "make_tridiagonal", INT, POINTER, LONG, LONG, POINTER, LONG, POINTER, POINTER, POINTER
)
_bring = function("bring_back", INT, POINTER, LONG, LONG, POINTER, POINTER, LONG, LONG)
_overlap = function("largest_overlap", DOUBLE, POINTER, LONG, LONG, LONG, POINTER, DOUBLE)
_values = function("tridiagonal_values", INT, POINTER, POINTER, LONG, LONG, POINTER)
_vectors = function(
    "tridiagonal_vectors", INT, POINTER, POINTER, LONG, POINTER, LONG, DOUBLE, POINTER, LONG
)

TOGETHER = 4
"""Matrices whose eigenvalues take as long as those of one."""
_NO_MEMORY = 1
_LINE, _SPARE = 8, 4
"""Entries of a cache line, and rows beyond the matrix's that the reduction reads as zeros."""


class TridiagonalForm:
    """T = Qᵀ·A·Q of a symmetric float64 matrix A on the CPU, as LAPACK's dsytrd makes it.

    Its sums of squares are plain: entries beyond 1e±150 have none. Raises MemoryError.

    Attributes:
        diagonal: n entries, float64.
        beside: n entries next to the diagonal, of which the last is nothing.
    """

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        """Reduce the matrix, of which the upper half is read, and rows are contiguous."""
        if matrix.is_cuda or matrix.dtype is not torch.float64:
            raise TypeError(
                f"Reduced is float64 on the CPU, not {matrix.dtype} on {matrix.device}."
            )
        n = self._n = len(matrix)
        if n > 1 and matrix.stride(1) != 1:
            raise ValueError(f"Rows must be contiguous, entries are {matrix.stride(1)} apart.")
        length = _LINE * (-(-n // _LINE) + 1)
        # An odd number of cache lines: others would make columns fall on the same few of them.
        self._length = length if length // _LINE % 2 else length + _LINE
        self._reflections = _floats((n + _SPARE) * self._length)
        self.diagonal, self.beside, self._scales = _floats(n), _floats(n), _floats(n)
        parts = (self.diagonal, self.beside, self._scales)
        failed = _make(
            matrix.data_ptr(), matrix.stride(0), n, address(self._reflections, torch.float64),
            self._length, *(address(x, torch.float64) for x in parts),
        )  # fmt: skip
        if failed:
            raise MemoryError

    def bring_back(self, vectors: Float[Tensor, "count padded"]) -> None:
        """Turn T's vectors z, the first n entries of a row each, into A's, Q·z, in place."""
        failed = _bring(
            address(self._reflections, torch.float64), self._length, self._n,
            address(self._scales, torch.float64), address(vectors, torch.float64),
            len(vectors), vectors.shape[1],
        )  # fmt: skip
        if failed:
            raise MemoryError


def _floats(count: int) -> Float[Tensor, " count"]:
    return torch.empty(count, dtype=torch.float64)


def eigenvalues(forms: Sequence[TridiagonalForm]) -> Float[Tensor, "forms n"]:
    """Return the eigenvalues of up to `TOGETHER` forms of one size, ascending, a row each.

    Found to float64 rounding of the largest, as LAPACK's dsterf does. Raises ArithmeticError where
    none are found (NaN, infinity, entries whose squares overflow), MemoryError.
    """
    n = len(forms[0].diagonal)
    found = torch.empty(len(forms), n, dtype=torch.float64)
    pointers = POINTER * len(forms)
    failed = _values(
        pointers(*(address(form.diagonal, torch.float64) for form in forms)),
        pointers(*(address(form.beside, torch.float64) for form in forms)),
        n, len(forms), address(found, torch.float64),
    )  # fmt: skip
    if failed == _NO_MEMORY:
        raise MemoryError
    if failed:
        raise ArithmeticError("No eigenvalues were found: is NaN or infinity in the matrix?")
    return found.sort(dim=1).values


def eigenvectors(
    diagonal: Float[Tensor, " n"],
    beside: Float[Tensor, " m"],
    values: Float[Tensor, " count"],
    into: Float[Tensor, "count padded"],
) -> None:
    """Write the unit eigenvectors of these eigenvalues into the rows of `into`, n entries each.

    All float64; `beside` is next to the diagonal. By twisted factorisations (Dhillon and Parlett
    2004) of T − λ: each costs O(n), and two are as orthogonal as their eigenvalues are apart, about
    1e-16·‖T‖/|λᵢ − λⱼ|. Raises MemoryError.
    """
    n, double = len(diagonal), torch.float64
    largest = float(
        torch.maximum(diagonal.abs().max(), beside.abs().max() if n > 1 else diagonal[0])
    )
    smallest = max(largest * 1e-18, 1e-290)
    failed = _vectors(
        address(diagonal, double), address(beside, double), n, address(values, double),
        len(values), smallest, address(into, double), into.shape[1],
    )  # fmt: skip
    if failed:
        raise MemoryError


def largest_overlap(
    vectors: Float[Tensor, "count padded"],
    values: Float[Tensor, " count"],
    n: int,
    reach: float,
) -> float:
    """Return the largest |zᵢ·zⱼ| of vectors whose values, descending, are at most `reach` apart.

    The vectors are the first n entries of a row each, all float64; 0 where none are so near.
    """
    double = torch.float64
    found: float = _overlap(
        address(vectors, double), n, len(vectors), vectors.shape[1], address(values, double), reach
    )
    return found
