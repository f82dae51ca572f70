"""Gram matrices of which a corner is the identity: most of their eigenvalues are 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import product

_ORTHONORMAL = 2e-6
"""Up to this, inner products of float32 unit vectors are rounding."""


@dataclass(frozen=True)
class Bordered:
    """G = MᵀM of M = [M₁ M₂], where M₁ is orthonormal but for its rounding E = M₁ᵀM₁ − I.

    M₁·L with L = (I + E)^-½ is exactly so. Of [M₁·L M₂] the Gram matrix is [[I, C], [Cᵀ, B]], with
    C = Q·R that is I + W·(S − I)·Wᵀ for W = [[Q, 0], [0, I]] and S = [[I, R], [Rᵀ, B]], and any
    function f of it f(1)·I + W·(f(S) − f(1)·I)·Wᵀ.

    Attributes:
        inside: S, of which the upper half is there.
        rounding: E.
        space: Q.
    """

    inside: Float[Tensor, "s s"]
    rounding: Float[Tensor, "c c"]
    space: Float[Tensor, "c o"]

    @classmethod
    def of(cls, squares: Float[Tensor, "k k"], orthonormal: int) -> Bordered | None:
        """Return G as that, if `orthonormal` is how many columns M₁ has.

        None where they are not orthonormal to float32 rounding, where there are no others, or so
        many that S would not be smaller than G.
        """
        others = len(squares) - orthonormal
        if not 0 < 2 * others < len(squares):
            return None
        rounding = squares[:orthonormal, :orthonormal].clone()
        rounding.diagonal().sub_(1.0)
        if float(rounding.abs().max()) > _ORTHONORMAL:
            return None
        space, r = torch.linalg.qr(_corrected(rounding, squares[:orthonormal, orthonormal:]))
        inside = squares.new_zeros((2 * others, 2 * others))
        inside[:others, :others].diagonal().fill_(1.0)
        inside[:others, others:] = r
        inside[others:, others:] = squares[orthonormal:, orthonormal:]
        return cls(inside, rounding, space)

    def multiplier(self, inside: Float[Tensor, "s s"]) -> Float[Tensor, "k k"]:
        """Return F with M·F = [M₁·L M₂]·f of its Gram matrix, given f(S), for an f with f(1) = 1.

        The correction belongs to the result as well: without it, it would be as far from
        orthonormal as the smallest eigenvalue makes of E.
        """
        count, others = self.space.shape
        change = inside - torch.eye(len(inside), dtype=inside.dtype, device=inside.device)
        right = product(change[:, :others], self.space.mT)
        whole = inside.new_empty((count + others, count + others))
        corrected = _corrected(self.rounding, self.space)
        torch.sub(product(corrected, right[:others]), self.rounding, alpha=0.5,
                  out=whole[:count, :count])  # fmt: skip
        whole[:count, count:] = product(corrected, change[:others, others:])
        whole[count:, :count] = right[others:]
        whole[count:, count:] = change[others:, others:]
        whole.diagonal().add_(1.0)
        return whole


def _corrected(rounding: Float[Tensor, "c c"], columns: Float[Tensor, "c o"]) -> Tensor:
    """Return L·X = (I − E/2 + 3E²/8)·X, but for E³."""
    once = product(rounding, columns)
    return columns - 0.5 * once + 0.375 * product(rounding, once)
