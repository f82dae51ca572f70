"""Task matrices as dominant singular subspaces, and their orthogonal sum (TSV-M)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.newton_schulz import (
    is_tall,
    newton_schulz,
    newton_schulz_multiplier,
)
from worker.merging.linalg.polar import polar_factor, polar_multiplier, procrustes_svd
from worker.merging.linalg.kernels import symmetric_product
from worker.merging.linalg.products import multiply, multiply_in_place
from worker.merging.linalg.svd import Decomposition

Orthogonalization = Literal["polar", "newton_schulz", "svd"]


class Bases:
    """The dominant singular directions of several matrices side by side: Û and V̂, float32.

    Attributes:
        ranks: how many directions each matrix has given.
    """

    def __init__(self, shape: tuple[int, int], most: int) -> None:
        """Make room for up to `most` directions of matrices of this shape."""
        self._u = torch.empty(shape[0], most, dtype=torch.float32)
        self._v = torch.empty(shape[1], most, dtype=torch.float32)
        self.ranks: list[int] = []

    @property
    def u(self) -> Float[Tensor, "m r"]:
        """Û = [U₁ … U_N]: each block's columns are orthonormal."""
        return self._u[:, : sum(self.ranks)]

    @property
    def v(self) -> Float[Tensor, "n r"]:
        """V̂ = [V₁ … V_N]."""
        return self._v[:, : sum(self.ranks)]

    def add(self, decomposition: Decomposition, strengths: Float[Tensor, " r"]) -> Tensor:
        """Add the first r singular directions, and return their strengths; of strengths 0, none.

        A strength is a direction's factor in the sum, and may be negative.
        """
        rank = len(strengths) if bool(strengths.any()) else 0
        first = sum(self.ranks)
        self._u = self._u.to(decomposition.matrix.device)
        self._v = self._v.to(decomposition.matrix.device)
        place = slice(first, first + rank)
        self._u[:, place], self._v[:, place] = decomposition.bases(rank)
        self.ranks.append(rank)
        return strengths[:rank]


def kept_rank(task_vectors: Float[Tensor, "experts m n"], fraction: float | None) -> int:
    """Return k = max(1, ⌊min(m, n)·fraction⌋); the fraction is one over the experts if None.

    A fraction such as 0.29 of 100 is 29 although its product in binary is 28.999999999999996.
    """
    experts, full = len(task_vectors), min(task_vectors.shape[-2:])
    return max(1, full // experts if fraction is None else math.floor(full * fraction + 1e-9))


def interference(bases: Bases, strengths: Float[Tensor, " r"]) -> dict[str, float]:
    """Return how much the subspaces overlap, as diagnostics.

    `left_overlap` and `right_overlap` are ‖UᵢᵀUⱼ‖² / min(kᵢ, kⱼ), averaged over the pairs (0:
    orthogonal, 1: one within the other; two random ones: about k/m). `singular_task_interference`
    is ‖(ÛᵀÛ − I)·Σ̂·(V̂ᵀV̂ − I)‖₁ (Gargiulo et al. 2025).
    """
    left, right = symmetric_product(bases.u), symmetric_product(bases.v)
    report = {
        "left_overlap": _overlap(left, bases.ranks),
        "right_overlap": _overlap(right, bases.ranks),
    }
    for products in (left, right):
        products.diagonal().sub_(1.0)
    total = (left @ (strengths.to(left.dtype)[:, None] * right)).abs().sum(dtype=torch.float64)
    return report | {"singular_task_interference": float(total)}


def _overlap(products: Float[Tensor, "r r"], ranks: Sequence[int]) -> float:
    blocks = [row.split(list(ranks), dim=1) for row in products.split(list(ranks))]
    pairs = [
        float(blocks[i][j].square().sum()) / min(ranks[i], ranks[j])
        for i, j in combinations(range(len(ranks)), 2)
        if min(ranks[i], ranks[j]) > 0
    ]
    return sum(pairs) / len(pairs) if pairs else 0.0


def orthogonal_sum(
    bases: Bases, strengths: Float[Tensor, " r"], orthogonalization: Orthogonalization
) -> Float[Tensor, "m n"]:
    """Return orth(Û)·diag(σ̂)·orth(V̂)ᵀ in float32. The bases are used up."""
    u, v = bases.u, bases.v
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
    """Multiply from the short side on: the long basis is read once, and becomes the result."""
    right = strengths.to(torch.float32)[:, None] * orthogonalize(short, orthogonalization).mT
    if not is_tall(long) or orthogonalization == "svd":
        return orthogonalize(long, orthogonalization) @ right
    multiplier = _MULTIPLIERS[orthogonalization](long)
    factor = multiplier @ right.to(multiplier.dtype)
    if factor.shape[0] == factor.shape[1] and long.is_contiguous():
        return multiply_in_place(long, factor)
    return multiply(long, factor)


def orthogonalize(
    matrix: Float[Tensor, "m n"], orthogonalization: Orthogonalization
) -> Float[Tensor, "m n"]:
    """Return the float32 matrix with its columns (or rows) made orthonormal in the given way."""
    return _FACTORS[orthogonalization](matrix)


_FACTORS = {"polar": polar_factor, "newton_schulz": newton_schulz, "svd": procrustes_svd}
_MULTIPLIERS = {"polar": polar_multiplier, "newton_schulz": newton_schulz_multiplier}
