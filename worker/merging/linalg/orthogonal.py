"""The ways to make a matrix's columns orthonormal, of matrices in memory or of their rows."""

from __future__ import annotations

from typing import Literal

import torch
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
    orthonormal: int = 0,
) -> Float[Tensor, "m n"]:
    """Return the float32 matrix with its columns (or rows) made orthonormal in the given way.

    `squares` is MᵀM in float64, if it is there. So many of the first columns are orthonormal.
    """
    if orthogonalization == "svd":
        return procrustes_svd(matrix)
    if matrix.shape[0] < matrix.shape[1]:
        squares, orthonormal = None, 0
    if orthogonalization == "polar":
        return polar_factor(matrix, squares, orthonormal)
    return newton_schulz(matrix, squares)


def row_factor(
    squares: Float[Tensor, "r r"],
    rows: int,
    right: Float[Tensor, "r n"],
    orthogonalization: Orthogonalization,
    orthonormal: int = 0,
) -> Float[Tensor, "r n"]:
    """Return F with `multiply(M, F)` = orth(M)·R for a tall float32 matrix of these rows and MᵀM.

    So many of the first columns are orthonormal. Not for `svd`, which needs the whole matrix.
    """
    if orthogonalization == "svd":
        raise ValueError("A float32 SVD is made of the whole matrix, not of its Gram matrix.")
    if orthogonalization == "polar":
        multiplier = polar_multiplier(squares, rows, orthonormal)
    else:
        multiplier = newton_schulz_multiplier(squares)
    return product(multiplier, right.to(multiplier.dtype))


def complement(basis: Float[Tensor, "m c"]) -> Float[Tensor, "m d"]:
    """Return m − c orthonormal directions, float64, orthogonal to c orthonormal ones."""
    rows, count = basis.shape
    directions = torch.zeros((rows, rows - count), dtype=torch.float64, device=basis.device)
    directions[count:].diagonal().fill_(1.0)
    if count == 0 or count == rows:
        return directions
    return torch.ormqr(*torch.geqrf(basis.double()), directions)
