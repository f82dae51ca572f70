"""Sums of trimmed task vectors: over the experts whose signs agree, or within bands of sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels import agreement
from worker.merging.linalg.order_statistics import ALL, Boundary
from worker.merging.linalg.sums import entries

Band = tuple[Boundary, Boundary]
"""What is kept by the first boundary, without what is kept by the second."""


def agreeing_sum(
    tensors: Float[Tensor, "experts *shape"],
    weights: Sequence[float],
    boundaries: Sequence[Boundary] | None = None,
    *,
    start: int = 0,
    weighted_votes: bool = True,
    normalize: bool,
) -> tuple[Float[Tensor, "*shape"], int]:
    """Return Σ wᵢxᵢ over the i whose wᵢxᵢ has the elected sign, and how many such entries are.

    xᵢ is trimmed by its boundary, and the block begins at position `start`. Elected is the sign of
    Σ wᵢxᵢ (of Σ xᵢ without `weighted_votes`) over all i, a zero counting as +. With `normalize`
    the sum is divided by Σ wᵢ over the same i as it; where that is 0 the result is 0.
    """
    boundaries = boundaries or [ALL] * len(tensors)
    result = torch.empty(tensors.shape[1:])
    agreeing = agreement.agreeing_sum(
        entries(tensors),
        weights,
        weighted_votes,
        np.array([boundary.key for boundary in boundaries], np.int32),
        np.array([boundary.split(start) for boundary in boundaries]),
        normalize,
        result.view(-1),
    )
    return result, agreeing


def banded_sum(
    tensors: Float[Tensor, "experts *shape"],
    weights: Sequence[float],
    bands: Sequence[Band],
    *,
    start: int,
) -> Float[Tensor, "*shape"]:
    """Return Σ wᵢxᵢ over the i in whose band the entry is; the block begins at `start`."""
    result = torch.empty(tensors.shape[1:])
    agreement.banded_sum(
        entries(tensors),
        weights,
        np.array([[boundary.key for boundary in band] for band in bands], np.int32),
        np.array([[boundary.split(start) for boundary in band] for band in bands]),
        result.view(-1),
    )
    return result


def spread(tensors: Float[Tensor, "experts *shape"]) -> tuple[Float[Tensor, " n"], int]:
    """Return the population standard deviation over the experts, flat, and how many are not 0.

    It ranks as variance does. Worked out of differences to the first expert: 0 exactly where all
    are equal.
    """
    result = torch.empty(tensors[0].numel())
    return result, agreement.spread(entries(tensors), result)


def selected_energies(
    tensors: Float[Tensor, "experts *shape"],
    ranked: Float[Tensor, " n"],
    boundary: Boundary,
    start: int,
) -> Float[Tensor, " experts"]:
    """Return each expert's Σ xᵢ² over the entries whose number in `ranked` the boundary keeps."""
    energies = torch.zeros(len(tensors), dtype=torch.float64)
    split = boundary.split(start)
    agreement.add_energies(entries(tensors), ranked, boundary.key, split, energies)
    return energies


def clear_unselected(
    values: Float[Tensor, "*shape"], ranked: Float[Tensor, " n"], boundary: Boundary, start: int
) -> None:
    """Set to 0, in place, the entries whose number in `ranked` the boundary does not keep."""
    split = boundary.split(start)
    agreement.clear_unselected(values.view(-1), ranked, boundary.key, split)
