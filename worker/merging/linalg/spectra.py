"""What a spectrum says: noise floor, energy, ranks, and boosting."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

_FLOAT32_ROUNDOFF = 2.0**-24


def noise_floor(
    largest: float,
    shape: tuple[int, int],
    *,
    unit_roundoff: float,
    base_rms: float,
    factor: float = 1.0,
) -> float:
    """Return τ: singular values of a task matrix at or under it are rounding, not learning.

    τ = max(u₃₂·max(m, n)·σ₁, factor·u·rms(W₀)·(√m + √n)). The first term is what float32
    arithmetic resolves, the second the norm of a random matrix whose entries are the rounding of
    the stored weights (u: unit roundoff of the dtype they are stored in).
    """
    m, n = shape
    stored = factor * unit_roundoff * base_rms * (math.sqrt(m) + math.sqrt(n))
    return max(_FLOAT32_ROUNDOFF * max(m, n) * largest, stored)


def boost(
    singular_values: Float[Tensor, " p"],
    beta: float,
    energy: Literal["singular_values", "squared"] = "singular_values",
) -> tuple[Float[Tensor, " p"], float]:
    """Return σ′ⱼ = max(σⱼ, σ_c), and σ_c, where the cumulative energy first reaches β at c.

    eⱼ = Σ_{l≤j} σₗ / Σ σₗ (or of the squares); `singular_values` descend and are positive. With
    β = 1, c is the last. An empty spectrum stays empty, with σ_c = 0.
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
    """Return the share of Σσ² that the first `rank` singular values hold; 1 of nothing."""
    squares = singular_values.square()
    total = float(squares.sum())
    return float(squares[:rank].sum()) / total if total > 0 else 1.0
