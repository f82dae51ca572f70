"""Singular value decompositions in float64, of which one side's vectors are made on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from worker.merging.kernels.tridiagonal import TOGETHER
from worker.merging.linalg.kernels import symmetric_product
from worker.merging.linalg.products import multiply, upper_gram
from worker.merging.linalg.tridiagonal import Eigenproblem

_DIRECT = 128
"""Matrices with no side above this are decomposed directly: it costs nothing, and the Gram matrix
of a small one resolves less than float32 does."""
_DELICATE = 16.0
"""Up to this ratio of rms(σ) to σᵣ, products in float32 keep singular vectors to about 1e-6."""


@dataclass(frozen=True)
class Columns:
    """Vectors that are all there, and answer as an `Eigenproblem` does."""

    columns: Float[Tensor, "*batch n n"]

    def vectors(self, count: int) -> Float[Tensor, "*batch n count"]:
        """Return the first ones in columns."""
        return self.columns[..., :count]

    def combined(self, weights: Float[Tensor, "*batch count"]) -> Float[Tensor, "*batch n n"]:
        """Return Σ wᵢ·vᵢvᵢᵀ of the first ones; no weight is negative."""
        scaled = self.vectors(weights.shape[-1]) * weights[..., None, :].sqrt()
        return symmetric_product(scaled.mT)


@dataclass(frozen=True)
class Decomposition:
    """The singular values of a matrix, and its singular vectors on the shorter side.

    Attributes:
        matrix: the float32 matrix that was decomposed (not copied), tall or square: the transpose
            of a wide one. None where only its Gram matrix was there.
        transposed: whether it is the transpose.
        singular_values: all of them, float64, descending.
        short: its right singular vectors, of which as many are made as are asked for.
    """

    matrix: Float[Tensor, "*batch long short"] | None
    transposed: bool
    singular_values: Float[Tensor, "*batch short"]
    short: Eigenproblem | Columns

    @property
    def long_side(self) -> Float[Tensor, "*batch long short"]:
        """The matrix, where it is there."""
        if self.matrix is None:
            raise ValueError("Only the matrix's Gram matrix is there, its rows are not.")
        return self.matrix

    def factors(
        self, rank: int
    ) -> tuple[Float[Tensor, "*batch short r"], Float[Tensor, "*batch short r"]]:
        """Return F and V: `multiply(matrix, F)` and V are the first `rank` singular vectors.

        F = V·diag(1/σ), for singular values that are not zero, V is float32. A product in float32
        errs by about u₃₂·rms(σ)/σᵣ in a vector; where that would show, F is float64.
        """
        short = self.short.vectors(rank)
        scaled = short / self.singular_values[..., None, :rank]
        delicate = is_delicate(self.singular_values, self.singular_values[..., :rank])
        return scaled if delicate else scaled.float(), short.float()

    def bases(self, rank: int) -> tuple[Float[Tensor, "*batch m r"], Float[Tensor, "*batch n r"]]:
        """Return U[:, :rank] and V[:, :rank] of the matrix as it was given, in float32.

        The first `rank` singular values must not be zero.
        """
        factor, short = self.factors(rank)
        pair = multiply(self.long_side, factor), short
        return pair[::-1] if self.transposed else pair


def is_delicate(values: Float[Tensor, "*batch n"], kept: Float[Tensor, "*batch r"]) -> bool:
    """Say whether float32 would show in M·v / σ: M's singular values, and those divided by."""
    rms = values.square().mean(-1).sqrt()
    return bool((rms[..., None] > _DELICATE * kept[..., -1:]).any())


def decompose(
    matrix: Float[Tensor, "*batch m n"],
    squares: Float[Tensor, "k k"] | None = None,
) -> Decomposition:
    """Return the decomposition of float32 matrices, exact to float64 rounding of the Gram matrix.

    A singular value σ carries an error of about 1e-16·σ₁²/σ, and the space of the first k vectors
    one of 1e-16·σ₁² / (σₖ² − σₖ₊₁²); a float32 SVD, 6e-8·σ₁ and 6e-8·σ₁ / (σₖ − σₖ₊₁). The Gram
    matrix in float64 is the more exact for every σ over 1e-8·σ₁, and the cheaper one. `squares`
    is that of the shorter side, its upper half, if it is there.
    """
    transposed = matrix.shape[-2] < matrix.shape[-1]
    tall = matrix.mT if transposed else matrix
    if _is_small(matrix):
        _, values, vh = torch.linalg.svd(tall.to(torch.float64), full_matrices=False)
        return Decomposition(tall, transposed, values, Columns(vh.mT))
    squares = upper_gram(tall) if squares is None else squares
    return _decomposition(squares, tall, transposed)


def decompose_all(matrices: Iterable[Float[Tensor, "m n"]]) -> Iterator[Decomposition]:
    """Yield the decompositions of matrices of one shape, each as `decompose` does, but quicker.

    A few of the matrices are taken, and kept, at a time.
    """
    for some in _few(matrices):
        if _is_small(some[0]) or some[0].is_cuda:
            yield from map(decompose, some)
            continue
        transposed = some[0].shape[0] < some[0].shape[1]
        tall = [matrix.mT if transposed else matrix for matrix in some]
        found = decompose_grams(map(upper_gram, tall))
        for matrix, decomposition in zip(tall, found, strict=True):
            yield replace(decomposition, matrix=matrix, transposed=transposed)


def decompose_grams(squares: Iterable[Float[Tensor, "n n"]]) -> Iterator[Decomposition]:
    """Yield the decompositions of tall matrices, as `decompose_all` does, given their MᵀM."""
    for some in _few(squares):
        if some[0].is_cuda:
            yield from map(decompose_gram, some)
        else:
            yield from (
                _of_values(problem.values, problem, None, False)
                for problem in Eigenproblem.solved(some)
            )


def _is_small(matrix: Tensor) -> bool:
    return max(matrix.shape[-2:]) <= _DIRECT or matrix.numel() == 0


def _few(matrices: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    left = iter(matrices)
    while some := list(islice(left, TOGETHER)):
        yield some


def decompose_gram(squares: Float[Tensor, "n n"]) -> Decomposition:
    """Return the decomposition of a tall matrix M of which MᵀM is there, float64, upper half."""
    return _decomposition(squares, None, False)


def _decomposition(
    squares: Float[Tensor, "*batch n n"], tall: Tensor | None, transposed: bool
) -> Decomposition:
    return _of_values(*_eigenproblem(squares), tall, transposed)


def _of_values(
    values: Float[Tensor, "*batch n"],
    short: Eigenproblem | Columns,
    tall: Tensor | None,
    transposed: bool,
) -> Decomposition:
    return Decomposition(tall, transposed, values.clamp(min=0.0).sqrt(), short)


def _eigenproblem(
    squares: Float[Tensor, "*batch n n"],
) -> tuple[Float[Tensor, "*batch n"], Eigenproblem | Columns]:
    """Return the eigenvalues, descending, and the eigenvectors."""
    if squares.ndim == 2 and squares.device.type == "cpu":
        problem = Eigenproblem(squares)
        return problem.values, problem
    values, vectors = torch.linalg.eigh(squares, UPLO="U")
    return values.flip(-1), Columns(vectors.flip(-1))
