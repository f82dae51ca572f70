"""Inner products of whole tensors, summed in float64, and what they say of norms and angles.

Matrices of a few experts are numpy's: there a step costs a fraction of what it costs in torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from worker.merging.kernels import sums
from worker.merging.linalg.sums import entries

Doubles = NDArray[np.float64]


def add_inner_products(
    tensors: Float[Tensor, "experts *shape"], gram: Float[Doubles, "experts experts"]
) -> None:
    """Add ⟨xᵢ, xⱼ⟩ to the upper triangle of `gram`, float64, on the CPU.

    Products of float32 entries are exact in float64, so that cosines keep what float32 would lose:
    experts of one base lie 1e-3 radians apart, where 1 − cos is 5e-7.
    """
    sums.add_inner_products(entries(tensors), gram)


def symmetric(upper: Float[Doubles, "n n"]) -> Float[Doubles, "n n"]:
    """Return the symmetric matrix with that upper triangle."""
    return np.where(np.tri(len(upper), k=-1, dtype=bool), upper.T, upper)


def cosines(gram: Float[Doubles, "*batch n n"]) -> Float[Doubles, "*batch n n"]:
    """Return ⟨xᵢ, xⱼ⟩ / (‖xᵢ‖‖xⱼ‖) in [−1, 1]; 0 for pairs of which one is zero.

    Zero is what is under float32's resolution of the largest of them.
    """
    norms = norms_of(gram)
    inverse = inverses(norms, 2.0**-24 * norms.max(-1, keepdims=True))
    found = gram * inverse[..., None] * inverse[..., None, :]
    return np.minimum(np.maximum(found, -1.0, out=found), 1.0, out=found)


def norms_of(gram: Float[Doubles, "*batch n n"]) -> Float[Doubles, "*batch n"]:
    """Return ‖xᵢ‖."""
    squares = np.diagonal(gram, axis1=-2, axis2=-1)
    norms: Doubles = np.sqrt(np.maximum(squares, 0.0))
    return norms


def described(gram: Float[Doubles, "n n"]) -> dict[str, Any]:
    """Return norms, and cosines with six decimals: the experts' interference by direction."""
    return {"norms": norms_of(gram).tolist(), "cosines": cosines(gram).round(6).tolist()}


def inverses(values: Doubles, floor: Doubles | float = 0.0) -> Doubles:
    """Return 1/x, 0 for what is not above the floor."""
    found: Doubles = np.divide(1.0, values, out=np.zeros_like(values), where=values > floor)
    return found
