"""Task matrices as dominant singular subspaces, and their orthogonal sum (TSV-M)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.linalg.kernels import product
from worker.merging.linalg.orthogonal import Orthogonalization, orthogonalize, row_factor
from worker.merging.linalg.products import gram, multiply, multiply_in_place
from worker.merging.linalg.svd import Decomposition
from worker.merging.linalg.task_spectra import TaskSpectrum

Rows = Callable[[Tensor], Tensor]
"""Makes rows of a result, (rows, n), of the task matrices' rows, (experts, rows, n)."""


class Bases:
    """The dominant singular directions of several matrices side by side, Û and V̂, float32.

    Attributes:
        ranks: how many directions each matrix has given.
        orthonormal: how many of the first columns are known to be so, in both.
        factors: Fᵢ with Uᵢ = Mᵢ·Fᵢ, for matrices of which only the Gram matrix is there.
    """

    def __init__(self, shape: tuple[int, int], most: int, *, whole: bool = True) -> None:
        """Make room for up to `most` directions of matrices of this shape.

        If they are not there whole, no Û is made.
        """
        self.shape = shape
        self._u = torch.empty(shape[0] if whole else 0, most, dtype=torch.float32)
        self._v = torch.empty(shape[1], most, dtype=torch.float32)
        self.ranks: list[int] = []
        self.orthonormal = 0
        self.factors: list[Tensor] = []

    @classmethod
    def of(cls, shape: tuple[int, ...], spectra: Sequence[TaskSpectrum], rank: int) -> Bases:
        """Make room for this many directions of each of these matrices."""
        whole = all(spectrum.decomposition.matrix is not None for spectrum in spectra)
        return cls((shape[0], shape[1]), rank * len(spectra), whole=whole)

    @property
    def u(self) -> Float[Tensor, "m r"]:
        """Û = [U₁ … U_N]: each block's columns are orthonormal."""
        return self._u[:, : sum(self.ranks)]

    @property
    def v(self) -> Float[Tensor, "n r"]:
        """V̂ = [V₁ … V_N]."""
        return self._v[:, : sum(self.ranks)]

    @cached_property
    def left(self) -> Float[Tensor, "r r"]:
        """ÛᵀÛ in float64, once all are added."""
        return gram(self.u)

    @cached_property
    def right(self) -> Float[Tensor, "r r"]:
        """V̂ᵀV̂ in float64, once all are added."""
        return gram(self.v)

    def add(
        self,
        decomposition: Decomposition,
        strengths: Float[Tensor, " r"],
        within: Float[Tensor, "m d"] | None = None,
    ) -> Tensor:
        """Add the first r singular directions, and return their strengths; of strengths 0, none.

        A strength is a direction's factor in the sum, and may be negative. Decomposed may be the
        coordinates of a matrix in a space, Sᵀ·M, of which `within` is the basis S.
        """
        rank = len(strengths) if bool(strengths.any()) else 0
        first = sum(self.ranks)
        self._u = self._u.to(strengths.device)
        self._v = self._v.to(strengths.device)
        place = slice(first, first + rank)
        if decomposition.matrix is None:
            factor, self._v[:, place] = decomposition.factors(rank)
            self.factors.append(factor)
        else:
            left, self._v[:, place] = decomposition.bases(rank)
            self._u[:, place] = left if within is None else multiply(within, left)
        self.ranks.append(rank)
        return strengths[:rank]

    def measured(self, matrices: Float[Tensor, "experts rows n"]) -> Float[Tensor, "rows s"]:
        """Return rows, of these rows of the matrices, of which the Gram matrix tells ÛᵀÛ."""
        return self._rows(matrices)

    def left_of(self, squares: Float[Tensor, "s s"]) -> Float[Tensor, "r r"]:
        """Return ÛᵀÛ from the Gram matrix of all rows `measured`."""
        return squares

    def times(self, factor: Float[Tensor, "r n"]) -> Rows:
        """Return what makes the rows of Û·F of these rows of the matrices, float32."""
        return lambda matrices: multiply(self._rows(matrices), factor)

    def _rows(self, matrices: Float[Tensor, "experts rows n"]) -> Float[Tensor, "rows r"]:
        """Return the rows of Û that belong to these rows of the matrices."""
        parts = [multiply(m, f) for m, f in zip(matrices, self.factors, strict=True)]
        return torch.cat(parts, dim=1)


def kept_rank(shape: tuple[int, ...], experts: int, fraction: float | None) -> int:
    """Return k = max(1, ⌊min(m, n)·fraction⌋); the fraction is one over the experts if None.

    A fraction such as 0.29 of 100 is 29 although its product in binary is 28.999999999999996.
    """
    full = min(shape)
    return max(1, full // experts if fraction is None else math.floor(full * fraction + 1e-9))


def orthogonal_sum(
    bases: Bases, strengths: Float[Tensor, " r"], orthogonalization: Orthogonalization
) -> Float[Tensor, "m n"]:
    """Return orth(Û)·diag(σ̂)·orth(V̂)ᵀ in float32. The bases are used up."""
    u, v = bases.u, bases.v
    if len(strengths) == 0:
        return u.new_zeros((u.shape[0], v.shape[0]))
    how = (orthogonalization, bases.orthonormal)
    if v.shape[0] > u.shape[0]:
        return _sum(v, bases.right, strengths, u, bases.left, *how).mT.contiguous()
    return _sum(u, bases.left, strengths, v, bases.right, *how)


def rows_of_sum(
    bases: Bases, strengths: Float[Tensor, " r"], orthogonalization: Orthogonalization
) -> Rows:
    """Return what makes rows of the orthogonal sum from these rows of the matrices.

    `bases.left` must be known: it is summed over the rows of Û.
    """
    if len(strengths) == 0:
        return lambda matrices: torch.zeros_like(matrices[0])
    how = (orthogonalization, bases.orthonormal)
    right = _right(strengths, bases.v, bases.right, *how)
    return bases.times(row_factor(bases.left, bases.shape[0], right, *how))


def _sum(
    long: Float[Tensor, "m r"],
    long_squares: Float[Tensor, "r r"],
    strengths: Float[Tensor, " r"],
    short: Float[Tensor, "n r"],
    short_squares: Float[Tensor, "r r"],
    orthogonalization: Orthogonalization,
    orthonormal: int,
) -> Float[Tensor, "m n"]:
    """Multiply from the short side on: the long basis is read once, and becomes the result."""
    right = _right(strengths, short, short_squares, orthogonalization, orthonormal)
    if long.shape[0] < _TALL * long.shape[1] or orthogonalization == "svd":
        return product(orthogonalize(long, orthogonalization, long_squares, orthonormal), right)
    factor = row_factor(long_squares, long.shape[0], right, orthogonalization, orthonormal)
    if factor.shape[0] == factor.shape[1] and long.is_contiguous():
        return multiply_in_place(long, factor)
    return multiply(long, factor)


def _right(
    strengths: Float[Tensor, " r"],
    short: Float[Tensor, "n r"],
    squares: Float[Tensor, "r r"],
    orthogonalization: Orthogonalization,
    orthonormal: int,
) -> Float[Tensor, "r n"]:
    """Return diag(σ̂)·orth(V̂)ᵀ."""
    basis = orthogonalize(short, orthogonalization, squares, orthonormal)
    return strengths.float()[:, None] * basis.mT


_TALL = 1.5
"""From this ratio of its sides on, a matrix is cheaper to orthogonalise by its Gram matrix."""
