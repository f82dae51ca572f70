"""Dominant singular directions of several matrices side by side, Û and V̂ (TSV-M, Iso-CTS)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.ops import apply, gram, mirror, product
from worker.merging.linalg.orthogonal import Orthogonalization, orthogonalizers
from worker.merging.linalg.spectrum import Spectrum


def kept_rank(shape: Sequence[int], experts: int, fraction: float | None) -> int:
    """Return k = max(1, ⌊min(m, n)·fraction⌋); the fraction is one over the experts if None.

    A fraction such as 0.29 of 100 is 29 although its product in binary is 28.999999999999996.
    """
    full = min(shape)
    return max(1, full // experts if fraction is None else math.floor(full * fraction + 1e-9))


@dataclass(frozen=True, eq=False)
class Part:
    """The directions that one matrix M gives: U = M·F (+ S·K, S the sum of all), and V.

    Attributes:
        expert: the matrix's number; None if it is the sum.
        factor: F, float32, or float64 where float32 rounding would be visible.
        right: V, float32.
        correction: K; None where there is none.
    """

    expert: int | None
    factor: Float[Tensor, "short r"]
    right: Float[Tensor, "short r"]
    correction: Float[Tensor, "short r"] | None = None

    @classmethod
    def of(cls, expert: int | None, spectrum: Spectrum, rank: int) -> Part:
        """Return the first `rank` directions of a matrix with this spectrum."""
        return cls(expert, *spectrum.factors(rank))

    def left(
        self,
        experts: Float[Tensor, "experts rows short"],
        total: Float[Tensor, "rows short"] | None,
    ) -> Float[Tensor, "rows r"]:
        """Return these rows of U, float32."""
        if self.expert is None:
            assert total is not None
            return apply(total, self.factor)
        if self.correction is None:
            return apply(experts[self.expert], self.factor)
        assert total is not None
        left = product(experts[self.expert], self.factor)
        return left.add_(product(total, self.correction)).float()


@dataclass(frozen=True, eq=False)
class Directions:
    """Û = [U₁ … U_K] by rows, and V̂ = [V₁ … V_K] whole, of matrices (long, short)."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    _orthogonal: dict[Orthogonalization, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def needs_sum(self) -> bool:
        """Whether rows of Û depend on the sum of the matrices."""
        return any(p.expert is None or p.correction is not None for p in self.parts)

    @property
    def ranks(self) -> list[int]:
        """How many directions each part has."""
        return [part.right.shape[1] for part in self.parts]

    def left(
        self,
        experts: Float[Tensor, "experts rows short"],
        total: Float[Tensor, "rows short"] | None,
    ) -> Float[Tensor, "rows r"]:
        """Return the rows of Û that belong to these rows of the matrices, float32."""
        return torch.cat([part.left(experts, total) for part in self.parts], dim=1)

    @cached_property
    def right(self) -> Float[Tensor, "short r"]:
        """V̂, float32."""
        return torch.cat([part.right for part in self.parts], dim=1)

    @cached_property
    def right_gram(self) -> Float[Tensor, "r r"]:
        """V̂ᵀV̂, float64, symmetric."""
        return mirror(gram(self.right))

    def orthogonal_sum(
        self,
        left_gram: Float[Tensor, "r r"],
        strengths: Float[Tensor, " r"],
        how: Orthogonalization,
    ) -> Float[Tensor, "r short"]:
        """Return W with Û·W = orth(Û)·diag(strengths)·orth(V̂)ᵀ, given ÛᵀÛ."""
        if how not in self._orthogonal:
            left, right = orthogonalizers([left_gram, self.right_gram], self.shape, how)
            self._orthogonal[how] = left, apply(self.right, right)
        factor, basis = self._orthogonal[how]
        weighted = strengths.float()[:, None] * basis.mT
        return product(factor, weighted.to(factor.dtype))

    def interference(
        self, left_gram: Float[Tensor, "r r"], strengths: Float[Tensor, " r"]
    ) -> dict[str, float]:
        """Return how much the subspaces overlap, as diagnostics.

        `left_overlap` and `right_overlap` are ‖UᵢᵀUⱼ‖² / min(kᵢ, kⱼ), averaged over the pairs (0:
        orthogonal, 1: one within the other). `singular_task_interference` is
        ‖(ÛᵀÛ − I)·Σ̂·(V̂ᵀV̂ − I)‖₁ (Gargiulo et al. 2025).
        """
        left, right = left_gram.float(), self.right_gram.float()
        found = {
            "left_overlap": _overlap(left, self.ranks),
            "right_overlap": _overlap(right, self.ranks),
        }
        identity = torch.eye(len(left), device=left.device)
        total = product(left - identity, strengths.float()[:, None] * (right - identity))
        return found | {"singular_task_interference": float(total.abs().sum(dtype=torch.float64))}


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
