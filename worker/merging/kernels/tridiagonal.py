"""Eigenvectors of a symmetric tridiagonal matrix of which the eigenvalues are known."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.library import DOUBLE, INT, LONG, POINTER, address, function

_vectors = function(
    "tridiagonal_vectors", INT, POINTER, POINTER, LONG, POINTER, LONG, DOUBLE, POINTER, LONG
)


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
