"""How much the experts' dominant subspaces overlap: what TSV-M takes away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    sizes = np.array([rank for rank in ranks if rank > 0])
    if len(sizes) < 2:
        return 0.0
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    squares = products.square().cpu().numpy()
    blocks = np.add.reduceat(squares, starts, axis=0, dtype=np.float64)
    blocks = np.add.reduceat(blocks, starts, axis=1)
    one, other = np.triu_indices(len(sizes), 1)
    return float((blocks[one, other] / np.minimum(sizes[one], sizes[other])).mean())
