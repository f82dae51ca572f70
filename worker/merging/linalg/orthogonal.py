"""The ways to make a matrix's columns orthonormal, of matrices in memory or of their rows."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import product
from worker.merging.linalg.newton_schulz import newton_schulz, newton_schulz_multiplier
from worker.merging.linalg.polar import polar_factor, polar_multiplier, procrustes_svd

Orthogonalization = Literal["polar", "newton_schulz", "svd"]


def orthogonalize(
    matrix: Float[Tensor, "m n"],
    orthogonalization: Orthogonalization,
    squares: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, "m n"]:
    """Return the float32 matrix with its columns (or rows) made orthonormal in the given way.

    `squares` is MᵀM in float64, if it is there.
    """
    if orthogonalization == "svd":
        return procrustes_svd(matrix)
    if matrix.shape[0] < matrix.shape[1]:
        squares = None
    if orthogonalization == "polar":
        return polar_factor(matrix, squares)
    return newton_schulz(matrix, squares)


def row_factor(
    squares: Float[Tensor, "r r"],
    rows: int,
    right: Float[Tensor, "r n"],
    orthogonalization: Orthogonalization,
) -> Float[Tensor, "r n"]:
    """Return F with `multiply(M, F)` = orth(M)·R for a tall float32 matrix of these rows and MᵀM.

    Not for `svd`, which needs the whole matrix.
    """
    if orthogonalization == "svd":
        raise ValueError("A float32 SVD is made of the whole matrix, not of its Gram matrix.")
    if orthogonalization == "polar":
        multiplier = polar_multiplier(squares, rows)
    else:
        multiplier = newton_schulz_multiplier(squares)
    return product(multiplier, right.to(multiplier.dtype))
