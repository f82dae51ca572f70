"""Inner products of whole tensors, summed in float64, and linear combinations by what they say."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels import sums
from worker.merging.linalg.sums import entries


def add_inner_products(
    tensors: Float[Tensor, "experts *shape"], gram: Float[Tensor, "experts experts"]
) -> None:
    """Add ⟨xᵢ, xⱼ⟩ to the upper triangle of `gram`, float64, on the CPU.

    Products of float32 entries are exact in float64, so that cosines keep what float32 would lose:
    experts of one base lie 1e-3 radians apart, where 1 − cos is 5e-7.
    """
    sums.add_inner_products(entries(tensors), gram)


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
