"""Weighted sums over experts, the same to the bit whatever block of a tensor they are taken of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels import sums


def weighted_sum(
    tensors: Float[Tensor, "experts *shape"], weights: Sequence[float], *, normalize: bool
) -> Float[Tensor, "*shape"]:
    """Return Σ wᵢxᵢ in the order given, or Σ wᵢxᵢ / Σ wᵢ.

    Entry by entry, and never as a matrix product: BLAS sums in an order that depends on the size.
    ZeroDivisionError where the weights are to be normalised and add up to 0.
    """
    factors = shares(weights, normalize=normalize)
    if tensors.is_cuda:
        weights_there = torch.tensor(factors, device=tensors.device)
        return torch.einsum("i,i...->...", weights_there, tensors)
    result = torch.empty(tensors.shape[1:])
    sums.weighted_sum(entries(tensors), factors, result.view(-1))
    return result


def shares(weights: Sequence[float], *, normalize: bool) -> list[float]:
    """Return the weights, or what each is of their sum; ZeroDivisionError where that is 0."""
    total = math.fsum(weights) if normalize else 1.0
    return [weight / total for weight in weights]


def entries(
    tensors: Float[Tensor, "experts *shape"],
) -> Float[Tensor, "experts n"]:
    """Return the tensors as kernels take them: a row each, without a copy where they allow it."""
    return tensors.reshape(len(tensors), -1).contiguous()
