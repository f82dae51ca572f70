"""The polar factor U·Vᵀ of a matrix: the nearest one with orthonormal columns (or rows)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.bordered import Bordered
from worker.merging.linalg.products import multiply
from worker.merging.linalg.svd import Decomposition, decompose, decompose_gram

_RESOLUTION = torch.finfo(torch.float32).eps
_DELICATE = 8.0
"""Up to this rms(σ)·rms(1/σ), a product in float32 keeps the polar factor to 5e-7 of it."""


def polar_multiplier(
    squares: Float[Tensor, "k k"], rows: int, orthonormal: int = 0
) -> Float[Tensor, "k k"]:
    """Return S with `multiply(matrix, S)` the polar factor of a float32 matrix, tall or square.

    `squares` is its Gram matrix in float64, `rows` its longer side, `orthonormal` how many of its
    first columns are. Directions whose σ is under ε₃₂·√rows·σ₁ are rounding and get 0 instead of a
    vector that noise would choose: of a rank-deficient matrix this is the unique partial isometry
    with the same kernel (two equal experts thus give what one of them gives). S is float64 where
    float32 would show.
    """
    bordered = Bordered.of(squares, orthonormal)
    if bordered is None:
        return _rounded(*_polar_multiplier(decompose_gram(squares), rows))
    multiplier, delicate = _polar_multiplier(decompose_gram(bordered.inside), rows)
    return _rounded(bordered.multiplier(multiplier), delicate)


def _polar_multiplier(
    spectrum: Decomposition, rows: int
) -> tuple[Float[Tensor, "*batch k k"], bool]:
    values = spectrum.singular_values
    floor = _RESOLUTION * rows**0.5 * values[..., :1]
    return _inverse_root(spectrum, torch.where(values > floor, values.reciprocal(), 0.0))


def isometry_multiplier(spectrum: Decomposition, rank: int) -> Float[Tensor, "*batch k k"]:
    """Return V·diag(1/σ)·Vᵀ of the first `rank` directions: by it, rows of M become rows of U·Vᵀ.

    Of a wide matrix, for the rows of its transpose.
    """
    inverse = torch.zeros_like(spectrum.singular_values)
    inverse[..., :rank] = spectrum.singular_values[..., :rank].reciprocal()
    return _rounded(*_inverse_root(spectrum, inverse))


def _inverse_root(
    spectrum: Decomposition, inverse: Float[Tensor, "*batch short"]
) -> tuple[Float[Tensor, "*batch short short"], bool]:
    """Return V·diag(1/σ)·Vᵀ of a tall matrix for these 1/σ, of which those left out are 0.

    And whether a product with it would show float32.
    """
    used = int((inverse > 0).sum(-1).max()) if inverse.numel() else 0
    multiplier = spectrum.short.combined(inverse[..., :used])
    # The error is the product's relative one, u₃₂·‖σ‖·‖1/σ‖, beside the factor's norm, √used.
    error = torch.linalg.vector_norm(inverse, dim=-1)
    error = error * torch.linalg.vector_norm(spectrum.singular_values, dim=-1)
    return multiplier, bool((error > _DELICATE * used).any())


def _rounded(
    multiplier: Float[Tensor, "*batch k k"], delicate: bool
) -> Float[Tensor, "*batch k k"]:
    return multiplier if delicate else multiplier.float()


def polar_factor(
    matrix: Float[Tensor, "*batch m n"],
    squares: Float[Tensor, "k k"] | None = None,
    orthonormal: int = 0,
) -> Float[Tensor, "*batch m n"]:
    """Return U·Vᵀ of a float32 matrix M = U·diag(σ)·Vᵀ, in float32; of zeros, zeros.

    `squares` is the Gram matrix of a tall or square one, if it is there, and `orthonormal` how many
    of its first columns are.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return polar_factor(matrix.mT).mT
    rows = matrix.shape[-2]
    if squares is not None and orthonormal:
        return multiply(matrix, polar_multiplier(squares, rows, orthonormal))
    return multiply(matrix, _rounded(*_polar_multiplier(decompose(matrix, squares), rows)))


def procrustes_svd(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
    """Return U·Vᵀ by a float32 SVD, as the original TSV-M computes it.

    Directions of a rank-deficient matrix that have no singular value get vectors that rounding
    chooses; `polar_factor` does not have this fault.
    """
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    factor: Tensor = u @ vh
    return factor
