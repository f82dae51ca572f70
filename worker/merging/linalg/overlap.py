"""How much the experts' dominant subspaces overlap: what TSV-M takes away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import product
from worker.merging.linalg.subspaces import Bases


def interference(bases: Bases, strengths: Float[Tensor, " r"]) -> dict[str, float]:
    """Return how much the subspaces overlap, as diagnostics.

    `left_overlap` and `right_overlap` are ‖UᵢᵀUⱼ‖² / min(kᵢ, kⱼ), averaged over the pairs (0:
    orthogonal, 1: one within the other; two random ones: about k/m). `singular_task_interference`
    is ‖(ÛᵀÛ − I)·Σ̂·(V̂ᵀV̂ − I)‖₁ (Gargiulo et al. 2025).
    """
    left, right = bases.left.float(), bases.right.float()
    report = {
        "left_overlap": _overlap(left, bases.ranks),
        "right_overlap": _overlap(right, bases.ranks),
    }
    for products in (left, right):
        products.diagonal().sub_(1.0)
    total = product(left, right.mul_(strengths.to(left.dtype)[:, None])).abs_()
    return report | {"singular_task_interference": float(total.sum(dtype=torch.float64))}


def _overlap(products: Float[Tensor, "r r"], ranks: Sequence[int]) -> float:
    blocks = [row.split(list(ranks), dim=1) for row in products.split(list(ranks))]
    pairs = [
        float(blocks[i][j].square().sum()) / min(ranks[i], ranks[j])
        for i, j in combinations(range(len(ranks)), 2)
        if min(ranks[i], ranks[j]) > 0
    ]
    return sum(pairs) / len(pairs) if pairs else 0.0
