"""The matrix of a given rank that is closest to another one, as two factors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.ops import eigh, gram


def low_rank(
    change: Float[Tensor, "m n"], rank: int
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "m r"]]:
    """Return A and B, float64, whose product B·A is the matrix of that rank closest to `change`.

    Both have norm √σ in each direction.
    """
    upright = change if change.shape[0] >= change.shape[1] else change.mT.contiguous()
    (problem,) = eigh([gram(upright)])
    short = problem.vectors(rank)
    tall = upright.double() @ short
    strengths = tall.norm(dim=0)
    scales = torch.where(strengths > 0, strengths.rsqrt(), torch.zeros_like(strengths))
    short, tall = short * strengths.sqrt(), tall * scales
    if change.shape[0] >= change.shape[1]:
        return short.mT.contiguous(), tall.contiguous()
    return tall.mT.contiguous(), short.contiguous()
