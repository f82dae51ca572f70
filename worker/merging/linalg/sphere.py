"""Norms, angles and means on the sphere, computed from the Gram matrix of a few vectors.

A vector of their span is given by its coefficients c, and ⟨x, y⟩ is cₓᵀG c_y. So the vectors are
read once for G and once for the result, however many steps a mean takes, and every scalar is a
float64. Matrices of a few experts are numpy's: a step costs a fraction of torch's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_FLOOR = 2.0**-22
"""What float32 unit vectors that cancel leave behind, relative to 1."""


class Antipodal(Exception):  # noqa: N818 - a case of the mathematics; callers name the tensor
    """Directions cancel: their mean on the sphere is not defined."""


class KarcherMean(NamedTuple):
    """Coefficients of the mean direction over the unit vectors, and how it was reached."""

    coefficients: Float[Doubles, " n"]
    iterations: int
    tangent_norm: float


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
    """Return norms, and cosines with six decimals, as diagnostics."""
    return {"norms": norms_of(gram).tolist(), "cosines": cosines(gram).round(6).tolist()}


def inverses(values: Doubles, floor: Doubles | float = 0.0) -> Doubles:
    """Return 1/x; 0 where x is not above the floor."""
    found: Doubles = np.divide(1.0, values, out=np.zeros_like(values), where=values > floor)
    return found


def karcher_mean(
    cosines: Float[Doubles, "n n"], weights: Float[Doubles, " n"], *, max_iter: int, tol: float
) -> KarcherMean:
    """Return the Riemannian mean of unit vectors (weights add up to 1); raises Antipodal.

    Angles are twice the arc sine of half the chord: the arc cosine of a cosine near 1 keeps half
    of its digits at most.
    """
    shares, gram = weights, cosines
    mean, identity = shares.copy(), np.eye(len(shares))
    length = _lengths(mean, gram)
    if length < max(tol, _FLOOR) * np.abs(shares).sum():
        mean, length = identity[0].copy(), np.float64(1.0)
    mean /= length
    tangent_norm = math.inf
    for iteration in range(max_iter):
        chords = _lengths(mean - identity, gram)
        angles = 2.0 * np.arcsin(np.minimum(chords / 2.0, 1.0))
        if angles.max() > math.pi - 1e-6:
            raise Antipodal
        factors = shares / np.sinc(angles / math.pi)
        tangent = factors - (factors * (1.0 - chords * chords / 2.0)).sum() * mean
        tangent_norm = float(_lengths(tangent, gram))
        if tangent_norm < tol:
            return KarcherMean(mean, iteration, tangent_norm)
        step = math.sin(tangent_norm) / tangent_norm
        mean = math.cos(tangent_norm) * mean + step * tangent
        mean /= _lengths(mean, gram)
    return KarcherMean(mean, max_iter, tangent_norm)


def mean_direction(
    cosines: Float[Doubles, "n n"], weights: Float[Doubles, " n"]
) -> Float[Doubles, " n"]:
    """Return the coefficients of Σ wᵢuᵢ at length 1; raises Antipodal where it vanishes."""
    length = float(_lengths(weights, cosines))
    if length <= _FLOOR * float(np.abs(weights).sum()):
        raise Antipodal
    return weights / length


def slerp_coefficients(
    cosines: Float[Doubles, "*batch"], t: float, *, least_sine: float
) -> tuple[Float[Doubles, "*batch"], Float[Doubles, "*batch"]]:
    """Return sin((1−t)θ)/sin θ and sin(tθ)/sin θ; 1−t and t where sin θ is at most `least_sine`."""
    angles = 2.0 * np.arctan2(np.sqrt(1.0 - cosines), np.sqrt(1.0 + cosines))
    sines = np.sin(angles)
    straight = sines <= least_sine
    safe = np.where(straight, 1.0, sines)
    first = np.where(straight, 1.0 - t, np.sin((1.0 - t) * angles) / safe)
    second = np.where(straight, t, np.sin(t * angles) / safe)
    return first, second


def _lengths(coefficients: Doubles, cosines: Doubles) -> Any:
    """Return the length of each row, without losing that of a small difference of long vectors.

    cᵀGc is (Σc)² + cᵀ(G − 1)c, and the entries of G − 1 are small where the vectors are close.
    """
    total = coefficients.sum(-1)
    rest = (coefficients @ (cosines - 1.0) * coefficients).sum(-1)
    return np.sqrt(np.maximum(0.0, total * total + rest))
