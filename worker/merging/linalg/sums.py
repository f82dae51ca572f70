"""Weighted sums over experts, the same to the bit whatever block of a tensor they are taken of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.kernels import sums


def weighted_sum(
    tensors: Float[Tensor, "experts *shape"], weights: Sequence[float], *, normalize: bool
) -> Float[Tensor, "*shape"]:
    """Return Σ wᵢxᵢ in the order given, or Σ wᵢxᵢ / Σ wᵢ.

    Entry by entry, and never as a matrix product: BLAS sums in an order that depends on the size.
    ZeroDivisionError where the weights are to be normalised and add up to 0.
    """
    total = math.fsum(weights) if normalize else 1.0
    shares = [weight / total for weight in weights]
    if tensors.is_cuda:
        weights_there = torch.tensor(shares, device=tensors.device)
        return torch.einsum("i,i...->...", weights_there, tensors)
    factors = np.array(shares, np.float32)
    result = torch.empty(tensors.shape[1:])
    sums.weighted_sum(entries(tensors), factors, result.view(-1).numpy())
    return result


def entries(
    tensors: Float[Tensor, "experts *shape"],
) -> NDArray[np.float32]:
    """Return the tensors as kernels take them: a row each, without a copy where they allow it."""
    return tensors.reshape(len(tensors), -1).contiguous().numpy()
