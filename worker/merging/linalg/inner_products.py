"""Inner products of whole tensors, summed in float64, and linear combinations by what they say."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.sums import add_inner_products
from worker.merging.linalg.sums import entries


def inner_products(tensors: Float[Tensor, "experts *shape"]) -> Float[Tensor, "experts experts"]:
    """Return ⟨xᵢ, xⱼ⟩ in float64 on the CPU, symmetric to the bit.

    Products of float32 entries are exact in float64, so that cosines keep what float32 would lose:
    experts of one base lie 1e-3 radians apart, where 1 − cos is 5e-7.
    """
    upper = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    add_inner_products(entries(tensors), upper.numpy())
    return upper + upper.triu(1).mT


def cosines(gram: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Return ⟨xᵢ, xⱼ⟩ / (‖xᵢ‖‖xⱼ‖) in [−1, 1]; 0 for pairs of which one is zero.

    Zero is what is under float32's resolution of the largest of them.
    """
    norms = norms_of(gram)
    floor = 2.0**-24 * norms.amax(-1, keepdim=True)
    inverse = torch.where(norms > floor, 1.0 / norms, 0.0)
    return (gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)).clamp_(-1.0, 1.0)


def norms_of(gram: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    """Return ‖xᵢ‖."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()


def rounded_list(matrix: Float[Tensor, "..."]) -> list[float] | list[list[float]]:
    """Return the entries with six decimals, for diagnostics."""
    listed: list[float] | list[list[float]] = (matrix * 1e6).round().div(1e6).tolist()
    return listed
