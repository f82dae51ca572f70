"""Trimmed sums: over the experts that agree in sign (TIES, SCE), or within a band of sizes.

Trimmed by a key and a split: kept are magnitudes whose key is above that one, and of the first
`split` entries of a block those that have it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.kernels.library import INT, LONG, POINTER, address, floats, function

_ROWS = (POINTER, LONG, LONG)
_agreeing_sum = function("agreeing_sum", LONG, *_ROWS, POINTER, INT, POINTER, POINTER, INT, POINTER)
_banded_sum = function("banded_sum", None, *_ROWS, POINTER, POINTER, POINTER, POINTER)
_spread = function("spread", LONG, *_ROWS, POINTER)
_add_energies = function("add_energies", None, *_ROWS, POINTER, INT, LONG, POINTER)
_clear_unselected = function("clear_unselected", None, POINTER, POINTER, LONG, INT, LONG)


def agreeing_sum(
    tensors: Float[Tensor, "experts n"],
    weights: Sequence[float],
    weighted_votes: bool,
    keys: NDArray[np.int32],
    splits: NDArray[np.int64],
    normalize: bool,
    result: Float[Tensor, " n"],
) -> int:
    """Write Σ wᵢxᵢ over the i whose wᵢxᵢ has the elected sign; return how many those are.

    Elected is the sign of Σ xᵢ, or with `weighted_votes` of Σ wᵢxᵢ; a sum of 0 counts as positive.
    xᵢ is trimmed first, by keys[i] and splits[i]. With `normalize` the sum is divided by Σ wᵢ over
    the same i, 0 for 0.
    """
    agreeing: int = _agreeing_sum(
        address(tensors), *tensors.shape, floats(weights), weighted_votes,
        address(keys, np.int32), address(splits, np.int64), normalize, address(result),
    )  # fmt: skip
    return agreeing


def banded_sum(
    tensors: Float[Tensor, "experts n"],
    weights: Sequence[float],
    keys: NDArray[np.int32],
    splits: NDArray[np.int64],
    result: Float[Tensor, " n"],
) -> None:
    """Write Σ wᵢxᵢ into `result`, xᵢ 0 outside its band.

    In it is what is kept by keys[i, 0] and splits[i, 0], but not by keys[i, 1] and splits[i, 1].
    """
    _banded_sum(
        address(tensors), *tensors.shape, floats(weights),
        address(keys, np.int32), address(splits, np.int64), address(result),
    )  # fmt: skip


def spread(tensors: Float[Tensor, "experts n"], result: Float[Tensor, " n"]) -> int:
    """Write each entry's standard deviation over the experts; return how many are not 0.

    0 exactly where all are equal. Of differences to the first expert, so that no square overflows;
    what is 2⁷⁵ times smaller than the largest near it counts as 0.
    """
    nonzero: int = _spread(address(tensors), *tensors.shape, address(result))
    return nonzero


def add_energies(
    tensors: Float[Tensor, "experts n"],
    ranked: Float[Tensor, " n"],
    key: int,
    split: int,
    energies: Float[Tensor, " experts"],
) -> None:
    """Add to `energies` each expert's Σ xᵢ² over the entries that are kept in `ranked`."""
    _add_energies(
        address(tensors), *tensors.shape, address(ranked), key, split,
        address(energies, torch.float64),
    )  # fmt: skip


def clear_unselected(
    values: Float[Tensor, " n"], ranked: Float[Tensor, " n"], key: int, split: int
) -> None:
    """Set `values` to 0 where what is in `ranked` is not kept."""
    _clear_unselected(address(values), address(ranked), len(values), key, split)
