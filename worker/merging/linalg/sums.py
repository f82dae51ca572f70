"""Weighted sums over experts, the same to the bit whatever block of a tensor they are taken of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def weighted_sum(
    tensors: Float[Tensor, experts * shape], weights: Sequence[float], *, normalize: bool
) -> Float[Tensor, "*shape"]:
    """Return Σ wᵢxᵢ in the order given, or Σ wᵢxᵢ / Σ wᵢ.

    Entry by entry, and never as a matrix product: BLAS sums in an order that depends on the size.
    ZeroDivisionError where the weights are to be normalised and add up to 0.
    """
    total = math.fsum(weights) if normalize else 1.0
    first, *others = (weight / total for weight in weights)
    result = torch.mul(tensors[0], first)
    for tensor, factor in zip(tensors[1:], others, strict=True):
        result.add_(tensor, alpha=factor)
    return result
