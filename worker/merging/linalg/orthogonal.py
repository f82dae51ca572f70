"""Ways to make a matrix's columns orthonormal, as a factor: M·F for the F that MᵀM gives.

Both ways map the singular values and keep the singular vectors: M·F = U·diag(f(σ))·Vᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.spectrum import Spectrum, spectra_of

Orthogonalization = Literal["polar", "newton_schulz"]

_RESOLUTION = torch.finfo(torch.float32).eps
_VISIBLE = 8.0
"""Up to this rms(σ)·rms(f(σ)/σ), a product in float32 keeps the result to 5e-7 of it."""

NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""(a, b, c) of each step X ← aX + (bXXᵀ + c(XXᵀ)²)X (arXiv 2603.05354)."""


def orthogonalizers(
    grams: Sequence[Float[Tensor, "k k"]], rows: Sequence[int], how: Orthogonalization
) -> list[Float[Tensor, "k k"]]:
    """Return F with `apply(M, F)` orthonormal for matrices M of these MᵀM and numbers of rows."""
    return [
        polar(spectrum, count) if how == "polar" else newton_schulz(spectrum)
        for spectrum, count in zip(spectra_of(grams), rows, strict=True)
    ]


def polar(spectrum: Spectrum, rows: int) -> Float[Tensor, "k k"]:
    """Return F with `apply(M, F)` = U·Vᵀ, the polar factor of a float32 matrix M of so many rows.

    Directions whose σ is under ε₃₂·√rows·σ₁ are rounding, and get 0 instead of a vector that noise
    would choose: of a rank-deficient matrix this is the unique partial isometry with the same
    kernel (two equal experts give what one of them gives).
    """
    floor = _RESOLUTION * rows**0.5 * spectrum.largest
    return isometry(spectrum, int((spectrum.everything > floor).sum()))


def isometry(spectrum: Spectrum, rank: int) -> Float[Tensor, "k k"]:
    """Return F with `apply(M, F)` = U·Vᵀ of the first `rank` directions."""
    return _factor(spectrum, spectrum.everything[:rank].reciprocal())


def newton_schulz(spectrum: Spectrum) -> Float[Tensor, "k k"]:
    """Return F with `apply(M, F)` five Newton-Schulz steps from M/‖M‖ on.

    Every step maps each singular value by x ← ax + bx³ + cx⁵. Normalised ones from 0.01 to 1 end
    between 0.978 and 1.032, one of 1e-3 at 0.47, and smaller ones stay small: unlike the polar
    factor, this is continuous in M. Under 1e-7·σ₁, where the Gram matrix resolves nothing, they
    are left out.
    """
    values = spectrum.everything[spectrum.everything > _RESOLUTION * spectrum.largest]
    norm = spectrum.everything.norm().clamp(min=torch.finfo(torch.float64).tiny)
    squares, slopes = (values / norm).square(), torch.ones_like(values) / norm
    for a, b, c in NEWTON_SCHULZ:
        slope = a + b * squares + c * squares.square()
        slopes, squares = slopes * slope, squares * slope.square()
    return _factor(spectrum, slopes)


def _factor(spectrum: Spectrum, slopes: Float[Tensor, " r"]) -> Float[Tensor, "k k"]:
    """Return V·diag(f(σ)/σ)·Vᵀ of the leading directions: float64 where float32 is too coarse."""
    factor = spectrum.eigen.combined(slopes)
    # The error is the product's relative one, u₃₂·‖σ‖·‖f(σ)/σ‖, against the result's norm, √r.
    exact = bool(slopes.norm() * spectrum.everything.norm() > _VISIBLE * len(slopes))
    return factor if exact else factor.float()


def complement(basis: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
    """Return n − c orthonormal directions, float64, orthogonal to c orthonormal ones."""
    rows, count = basis.shape
    directions = torch.zeros((rows, rows - count), dtype=torch.float64, device=basis.device)
    directions[count:].diagonal().fill_(1.0)
    if count in (0, rows):
        return directions
    return torch.ormqr(*torch.geqrf(basis.double()), directions)
