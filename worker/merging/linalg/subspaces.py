"""Task matrices as dominant singular subspaces, and their orthogonal sum (TSV-M)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.newton_schulz import (
    is_tall,
    newton_schulz,
    newton_schulz_multiplier,
)
from worker.merging.linalg.polar import polar_factor, polar_multiplier, procrustes_svd
from worker.merging.linalg.products import multiply, symmetric_product
from worker.merging.linalg.svd import Decomposition

Orthogonalization = Literal["polar", "newton_schulz", "svd"]


@dataclass(frozen=True)
class Subspace:
    """The dominant singular directions of one expert: U, V and what stands between them.

    Attributes:
        u: float32 (m, r), orthonormal columns.
        strengths: float64 (r,), the directions' factors in the sum; may be negative.
        v: float32 (n, r), orthonormal columns.
    """

    u: Float[Tensor, "m r"]
    strengths: Float[Tensor, " r"]
    v: Float[Tensor, "n r"]

    @classmethod
    def dominant(cls, decomposition: Decomposition, strengths: Float[Tensor, " r"]) -> Subspace:
        """Return the first r singular directions with these strengths; of strengths 0, none."""
        rank = len(strengths) if bool(strengths.any()) else 0
        u, v = decomposition.bases(rank)
        return cls(u, strengths[:rank], v)


def kept_rank(task_vectors: Float[Tensor, "experts m n"], fraction: float | None) -> int:
    """Return k = max(1, ⌊min(m, n)·fraction⌋); the fraction is one over the experts if None.

    A fraction such as 0.29 of 100 is 29 although its product in binary is 28.999999999999996.
    """
    experts, full = len(task_vectors), min(task_vectors.shape[-2:])
    return max(1, full // experts if fraction is None else math.floor(full * fraction + 1e-9))


def interference(subspaces: Sequence[Subspace]) -> dict[str, Any]:
    """Return how much the experts' subspaces overlap, as diagnostics.

    `left_overlap` and `right_overlap` are ‖UᵢᵀUⱼ‖² / min(kᵢ, kⱼ), averaged over the pairs (0:
    orthogonal, 1: one within the other; two random ones: about k/m). `singular_task_interference`
    is ‖(ÛᵀÛ − I)·Σ̂·(V̂ᵀV̂ − I)‖₁ (Gargiulo et al. 2025).
    """
    ranks = [len(subspace.strengths) for subspace in subspaces]
    strengths = torch.cat([subspace.strengths for subspace in subspaces]).to(torch.float32)
    left = symmetric_product(torch.cat([subspace.u for subspace in subspaces], dim=1))
    right = symmetric_product(torch.cat([subspace.v for subspace in subspaces], dim=1))
    report = {"left_overlap": _overlap(left, ranks), "right_overlap": _overlap(right, ranks)}
    for products in (left, right):
        products.diagonal().sub_(1.0)
    total = (left @ (strengths[:, None] * right)).abs().sum(dtype=torch.float64)
    return report | {"singular_task_interference": float(total)}


def _overlap(products: Float[Tensor, "r r"], ranks: Sequence[int]) -> float:
    rows = products.split(list(ranks))
    pairs = [
        float(block.square().sum()) / min(ranks[i], ranks[j])
        for i, row in enumerate(rows)
        for j, block in enumerate(row.split(list(ranks), dim=1))
        if i < j and min(ranks[i], ranks[j]) > 0
    ]
    return sum(pairs) / len(pairs) if pairs else 0.0


def orthogonal_sum(
    subspaces: Sequence[Subspace], orthogonalization: Orthogonalization
) -> Float[Tensor, "m n"]:
    """Return orth(Û)·diag(σ̂)·orth(V̂)ᵀ in float32, Û = [U₁ … U_N] and likewise V̂ and σ̂."""
    strengths = torch.cat([subspace.strengths for subspace in subspaces]).to(torch.float32)
    u = torch.cat([subspace.u for subspace in subspaces], dim=1)
    v = torch.cat([subspace.v for subspace in subspaces], dim=1)
    if len(strengths) == 0:
        return u.new_zeros((u.shape[0], v.shape[0]))
    if v.shape[0] > u.shape[0]:
        return _sum(v, strengths, u, orthogonalization).mT.contiguous()
    return _sum(u, strengths, v, orthogonalization)


def _sum(
    long: Float[Tensor, "m r"],
    strengths: Float[Tensor, " r"],
    short: Float[Tensor, "n r"],
    orthogonalization: Orthogonalization,
) -> Float[Tensor, "m n"]:
    """Multiply from the short side on: the long basis is read once, and not copied."""
    right = strengths[:, None] * orthogonalize(short, orthogonalization).mT
    if is_tall(long) and orthogonalization != "svd":
        multiplier = _MULTIPLIERS[orthogonalization](long)
        return multiply(long, multiplier @ right.to(multiplier.dtype))
    return orthogonalize(long, orthogonalization) @ right


def orthogonalize(
    matrix: Float[Tensor, "m n"], orthogonalization: Orthogonalization
) -> Float[Tensor, "m n"]:
    """Return the float32 matrix with its columns (or rows) made orthonormal in the given way."""
    return _FACTORS[orthogonalization](matrix)


_FACTORS = {"polar": polar_factor, "newton_schulz": newton_schulz, "svd": procrustes_svd}
_MULTIPLIERS = {"polar": polar_multiplier, "newton_schulz": newton_schulz_multiplier}
