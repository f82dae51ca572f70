"""Averages over the experts that agree with a sign elected entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def elect_signs(votes: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
    """Return 1 where the sum of the votes is at least 0, else −1."""
    # Begun with a positive zero, to which adding a negative one leaves it positive.
    total = torch.zeros_like(votes[0])
    for vote in votes:
        total += vote
    return torch.copysign(torch.ones_like(total), total, out=total)


def agreeing_sum(
    parts: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    signs: Float[Tensor, "*shape"],
    *,
    normalize: bool,
) -> tuple[Float[Tensor, "*shape"], int]:
    """Return Σ wᵢxᵢ over the i whose wᵢxᵢ has the elected sign, and how many such entries are.

    With `normalize` it is divided by Σ wᵢ over the same i; where that is 0 the result is 0.
    """
    total, divisor = torch.zeros_like(signs), torch.zeros_like(signs)
    along = torch.empty_like(signs)
    agreeing = 0
    for part, weight in zip(parts, weights, strict=True):
        torch.mul(part, signs, out=along)
        if weight != 1.0:
            along *= weight
        total += along.relu_()
        # Sums of zeros and ones are exact in float32 for as long a block as there is.
        agreeing += int(along.sign_().sum())
        divisor.add_(along, alpha=weight)
    total *= signs
    if not normalize:
        return total, agreeing
    if min(weights) < 0.0:
        # Weights that cancel leave a sum that is divided by 0.
        total *= divisor.abs().sign()
    total /= divisor
    return total.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf), agreeing
