"""Parameter competition (PCB-Merging): how changes score against those of the other experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels import competition
from worker.merging.linalg.sums import entries

_LEAST_SCALE = 1e-12
Pairs = Sequence[tuple[float, float]]
"""A least and a largest number, one pair an expert."""


def competition_scores(
    tensors: Float[Tensor, "experts *shape"], clips: Pairs, *, linear: bool
) -> Float[Tensor, "experts n"]:
    """Return exp(N·(norm(Aᵢ)² − 1))·tanh(dᵢ·Σⱼdⱼ), Aᵢ = |dᵢ| clipped between `clips`.

    0 for an expert whose sizes are all equal; `linear` says that tanh of any product is itself.
    """
    scores = torch.empty(len(tensors), tensors[0].numel())
    competition.competition_scores(entries(tensors), *_columns(clips), linear, scores)
    return scores


def competition_mean(
    tensors: Float[Tensor, "experts *shape"], clips: Pairs, bounds: Pairs, *, linear: bool
) -> Float[Tensor, "*shape"]:
    """Return Σ sign(dᵢ)Aᵢ·scaleᵢ / max(Σ scaleᵢ, 1e-12).

    scaleᵢ is 0 for scores up to the lower bound, and goes to 1 at the upper one.
    """
    result = torch.empty(tensors.shape[1:])
    competition.competition_mean(
        entries(tensors),
        *_columns(clips),
        linear,
        *_columns(bounds),
        _LEAST_SCALE,
        result.view(-1),
    )
    return result


def _columns(pairs: Pairs) -> tuple[list[float], list[float]]:
    return [lower for lower, _ in pairs], [upper for _, upper in pairs]
