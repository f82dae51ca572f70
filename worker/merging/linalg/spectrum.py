"""Spectra of task matrices: singular values, what is rounding noise among them, and their ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.ops import Eigen, eigh

_FLOAT32_ROUNDOFF = 2.0**-24
_RESOLVED = 16.0
"""Up to this ratio of rms(σ) to σᵣ, products in float32 keep singular vectors to about 1e-6."""


@dataclass(frozen=True)
class Rounding:
    """The rounding of the stored weights, from which noise floors follow.

    Attributes:
        unit_roundoff: that of the coarsest dtype in which base and experts are stored.
        base_rms: root mean square of the base's entries; 0 without a base.
        shape: the matrices', (m, n).
    """

    unit_roundoff: float
    base_rms: float
    shape: tuple[int, ...]

    def floor(self, largest: float, factor: float = 1.0) -> float:
        """Return τ: singular values of a task matrix at or under it are rounding, not learning.

        τ = max(u₃₂·max(m, n)·σ₁, factor·u·rms(W₀)·(√m + √n)). The first term is what float32
        arithmetic resolves, the second the norm of a random matrix whose entries are the rounding
        of the stored weights.
        """
        m, n = self.shape
        stored = factor * self.unit_roundoff * self.base_rms * (math.sqrt(m) + math.sqrt(n))
        return max(_FLOAT32_ROUNDOFF * max(m, n) * largest, stored)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of one upright task matrix M, and its right singular vectors on demand.

    Attributes:
        everything: all singular values, float64, descending.
        eigen: the eigenproblem of MᵀM.
        floor: τ; set by `above`.
    """

    everything: Float[Tensor, " short"]
    eigen: Eigen
    floor: float = 0.0

    def above(self, rounding: Rounding, factor: float, largest: float | None = None) -> Spectrum:
        """Return the spectrum with its noise floor.

        `factor` is the parameter noise_floor, `largest` the largest singular value of the data
        that M was computed from, where that is not its own.
        """
        floor = rounding.floor(self.largest if largest is None else largest, factor)
        return Spectrum(self.everything, self.eigen, floor)

    @property
    def largest(self) -> float:
        """σ₁; 0 of an empty matrix."""
        return float(self.everything[0]) if len(self.everything) else 0.0

    @property
    def singular_values(self) -> Float[Tensor, " r"]:
        """Those above the noise floor."""
        return self.everything[: int((self.everything > self.floor).sum())]

    def factors(
        self, rank: int, rms: float | None = None
    ) -> tuple[Float[Tensor, "short r"], Float[Tensor, "short r"]]:
        """Return F and V: U[:, :rank] = M·F and V[:, :rank]; F = V·diag(1/σ), V is float32.

        The first `rank` singular values must not be 0. A product with F in float32 errs by about
        u₃₂·rms(σ)/σᵣ in a vector; where that would be visible, F is float64. `rms` is that of the
        singular values of the matrix that F will be multiplied by, if that is not M.
        """
        vectors, values = self.eigen.vectors(rank), self.everything[:rank]
        factor = vectors / values
        rms = float(self.everything.square().mean().sqrt()) if rms is None else rms
        exact = rank > 0 and rms > _RESOLVED * float(values[-1])
        return factor if exact else factor.float(), vectors.float()

    def describe(self, rank: int) -> dict[str, Any]:
        """Return the diagnostics of a matrix of which `rank` directions are kept."""
        values = self.singular_values
        return {
            "norm": float(self.everything.norm()),
            "stable_rank": stable_rank(values),
            "effective_rank": effective_rank(values),
            "kept_rank": min(rank, len(values)),
            "kept_energy": kept_energy(values, rank),
            "noise_floor": self.floor,
            "noise_directions": len(self.everything) - len(values),
        }


def spectra_of(grams: Sequence[Float[Tensor, "short short"]]) -> list[Spectrum]:
    """Return the spectra of upright matrices from their MᵀM (upper triangles), of one size.

    A singular value σ is off by about 1e-16·σ₁²/σ, the space of the first k vectors by
    1e-16·σ₁² / (σₖ² − σₖ₊₁²). A float32 SVD, 6e-8·σ₁ and 6e-8·σ₁ / (σₖ − σₖ₊₁), is worse for
    every σ over 1e-8·σ₁.
    """
    return spectra_from(eigh(grams))


def spectra_from(problems: Sequence[Eigen]) -> list[Spectrum]:
    """Return the spectra of upright matrices M from the eigenproblems of their MᵀM."""
    return [Spectrum(problem.values.clamp(min=0.0).sqrt(), problem) for problem in problems]


def boost(
    singular_values: Float[Tensor, " p"],
    beta: float,
    energy: Literal["singular_values", "squared"] = "singular_values",
) -> tuple[Float[Tensor, " p"], float]:
    """Return σ′ⱼ = max(σⱼ, σ_c), and σ_c: the cumulative energy first reaches β at c.

    eⱼ = Σ_{l≤j} σₗ / Σ σₗ, or of the squares; the values descend and are positive. With β = 1,
    c is the last. Without values, σ_c = 0.
    """
    if len(singular_values) == 0:
        return singular_values, 0.0
    measure = singular_values.square() if energy == "squared" else singular_values
    cumulative = measure.cumsum(0)
    reached = int((cumulative < beta * cumulative[-1]).sum())
    threshold = singular_values[min(reached, len(singular_values) - 1)]
    return singular_values.clamp(min=threshold), float(threshold)


def stable_rank(singular_values: Float[Tensor, " p"]) -> float:
    """Return Σσ² / max σ², between 1 and the rank; 0 for an empty or zero spectrum."""
    squares = singular_values.square()
    largest = float(squares.max()) if len(squares) else 0.0
    return float(squares.sum()) / largest if largest > 0 else 0.0


def effective_rank(singular_values: Float[Tensor, " p"]) -> float:
    """Return exp of the entropy of σ / Σσ (Roy and Vetterli 2007); 0 for a zero spectrum."""
    total = float(singular_values.sum())
    if total == 0:
        return 0.0
    shares = singular_values / total
    return math.exp(-float(torch.xlogy(shares, shares).sum()))


def kept_energy(singular_values: Float[Tensor, " p"], rank: int) -> float:
    """Return the share of Σσ² that the first `rank` singular values hold; 1 without values."""
    squares = singular_values.square()
    total = float(squares.sum())
    return float(squares[:rank].sum()) / total if total > 0 else 1.0
