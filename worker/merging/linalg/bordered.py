"""Gram matrices of which a corner is the identity: most of their eigenvalues are 1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import product

_ORTHONORMAL = 2e-6
"""Up to this, inner products of float32 unit vectors are rounding."""


def bordering_space(
    squares: Float[Tensor, "k k"], orthonormal: int
) -> tuple[Float[Tensor, "k s"], Float[Tensor, "s s"]] | None:
    """Return W with orthonormal columns and S, with G = MᵀM = I + W·(S − I)·Wᵀ.

    Of M = [M₁ M₂] with MᵀM = [[I, C], [Cᵀ, B]] and C = Q·R: W = [[Q, 0], [0, I]] and
    S = [[I, R], [Rᵀ, B]], of which the upper half is there. Any function f of G is then
    f(1)·I + W·(f(S) − f(1)·I)·Wᵀ. `orthonormal` is how many columns M₁ has; None where they are
    not orthonormal to float32 rounding, or so few that S would not be smaller than G.
    """
    others = len(squares) - orthonormal
    if not 2 * others < len(squares):
        return None
    off = squares[:orthonormal, :orthonormal].clone()
    off.diagonal().sub_(1.0)
    if float(off.abs().max()) > _ORTHONORMAL:
        return None
    across = squares[:orthonormal, orthonormal:]
    # M₁ made orthonormal is M₁·(I − E/2) with its rounding E = M₁ᵀM₁ − I: in f(G) that would be as
    # much as the smallest eigenvalue makes of it, in M it is no more than rounding is anyway.
    q, r = torch.linalg.qr(across - 0.5 * product(off, across))
    space = squares.new_zeros((len(squares), 2 * others))
    space[:orthonormal, :others] = q
    space[orthonormal:, others:].diagonal().fill_(1.0)
    inside = squares.new_zeros((2 * others, 2 * others))
    inside[:others, :others].diagonal().fill_(1.0)
    inside[:others, others:] = r
    inside[others:, others:] = squares[orthonormal:, orthonormal:]
    return space, inside


def extended(space: Float[Tensor, "k s"], inside: Float[Tensor, "s s"]) -> Float[Tensor, "k k"]:
    """Return f(G) from f(S), for an f with f(1) = 1."""
    change = inside - torch.eye(len(inside), dtype=inside.dtype, device=inside.device)
    whole = product(space, product(change, space.mT))
    whole.diagonal().add_(1.0)
    return whole
