"""Iso-CTS (Marczak et al. 2025): Iso-C in which each expert's own directions have a place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from app.contract.catalogue.subspace import IsoCts
from worker.merging.linalg.directions import Directions, Part
from worker.merging.linalg.ops import gram, largest_eigenvalue, mirror, product
from worker.merging.linalg.orthogonal import complement
from worker.merging.linalg.spectrum import Rounding, Spectrum, spectra_of
from worker.merging.method import Block, Reduction, State, Steps, Subject, merges
from worker.merging.reductions import add_base, add_gram, add_product, orthogonal_sum, rounding_of


@merges(IsoCts)
def iso_cts(x: Subject, p: IsoCts) -> Steps:
    """Return mean(σ)·orth(Û)·orth(V̂)ᵀ: the common block, and the experts' own.

    The common block holds the top c directions of M = Σ wᵢdᵢ, an expert's block the top k of what
    the left projection dᵢ − U_c·U_cᵀ·dᵢ leaves of it. The mean is taken over all c + N·k places,
    of which those whose direction is noise count as 0.
    """
    c, k = places(min(x.shape), x.experts, p.common_space_fraction)
    found = yield CommonGrams()
    total = found.total.above(found.rounding, p.noise_floor * math.hypot(*x.weights))
    common = Part.of(None, total, min(c, len(total.singular_values)))
    outside = (_OutsideRight if x.transposed else _OutsideLeft)(found, total, common)
    rests = [
        rest.above(found.rounding, p.noise_floor, largest=largest_eigenvalue(squares) ** 0.5)
        for rest, squares in zip(spectra_of(outside.grams), found.squares, strict=True)
    ]
    own = [
        weight * rest.singular_values[: k if weight else 0]
        for weight, rest in zip(x.weights, rests, strict=True)
    ]
    parts = [outside.part(number, rest, len(own[number])) for number, rest in enumerate(rests)]
    directions = Directions(x.shape, (common, *parts))
    strengths = torch.cat([total.singular_values[:c], *own])
    mean = float(strengths.abs().sum()) / max(1, c + x.experts * k)
    flat = mean * strengths.sign()
    x.notes.diagnostics.update(
        experts=[
            rest.describe(len(values)) | _compared(norm, rest)
            for norm, rest, values in zip(found.norms, rests, own, strict=True)
        ],
        common_rank=directions.ranks[0],
        mean_singular_value=mean,
    )
    return (yield from orthogonal_sum(x, directions, flat, p.orthogonalization))


def places(full: int, experts: int, fraction: float) -> tuple[int, int]:
    """Return c and k: how many directions are common, and how many are each expert's own."""
    # A share such as 0.29 of 100 is 29 although its product in binary falls just short of it.
    outside = full - math.floor(full * fraction + 1e-9)
    own = round(outside / experts)
    return max(0, full - own * experts), own


@dataclass(frozen=True, eq=False)
class Common:
    """The spectrum of M, and what the experts' own directions follow from.

    Attributes:
        squares: dᵢᵀdᵢ, symmetric.
        with_sum: Mᵀdᵢ; nothing for a transposed matrix.
    """

    total: Spectrum
    squares: list[torch.Tensor]
    with_sum: list[torch.Tensor]
    rounding: Rounding

    @cached_property
    def norms(self) -> list[float]:
        """‖dᵢ‖ of each expert."""
        return [math.sqrt(float(squares.trace())) for squares in self.squares]

    def factors(self, number: int, rest: Spectrum, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of what is outside, as exact as a product with dᵢ needs."""
        return rest.factors(rank, rms=self.norms[number] / math.sqrt(len(self.squares[number])))


@dataclass(frozen=True)
class CommonGrams(Reduction):
    """MᵀM of M = Σ wᵢdᵢ, each dᵢᵀdᵢ and, of a matrix that is not transposed, Mᵀdᵢ."""

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add the block's products."""
        add_base(state, block)
        add_gram(state, "sum", block.sum)
        for number, matrix in enumerate(block.tensors):
            add_gram(state, f"{number}", matrix)
            if not subject.transposed:
                add_product(state, f"sum-{number}", block.sum, matrix)

    def finish(self, state: State, subject: Subject) -> Common:
        """Return the spectrum and the products."""
        squares = [mirror(state[f"{number}"]) for number in range(subject.experts)]
        with_sum = [state[f"sum-{n}"] for n in range(subject.experts) if not subject.transposed]
        (total,) = spectra_of([state["sum"]])
        return Common(total, squares, with_sum, rounding_of(state, subject))


class _OutsideRight:
    """What is outside the common space of transposed matrices: dᵢ·(I − V_c·V_cᵀ).

    Left of what is stored is right of what a method sees. In coordinates of V_c's complement S its
    Gram matrix is the small Sᵀ·dᵢᵀdᵢ·S.
    """

    def __init__(self, found: Common, total: Spectrum, common: Part) -> None:
        self._space = complement(common.right)
        self._found = found
        inside = [product(self._space.mT, product(g, self._space)) for g in found.squares]
        self.grams = [(matrix + matrix.mT) / 2 for matrix in inside]

    def part(self, number: int, rest: Spectrum, rank: int) -> Part:
        """Return an expert's first directions outside."""
        factor, right = self._found.factors(number, rest, rank)
        factor = product(self._space, factor.double()).to(factor.dtype)
        return Part(number, factor, product(self._space, right.double()).float())


class _OutsideLeft:
    """What is outside the common space: dᵢ − U_c·Xᵢ, with U_c = M·F and Xᵢ = Fᵀ·Mᵀdᵢ.

    Its Gram matrix is dᵢᵀdᵢ − Xᵢᵀ·Xᵢ, exact to float64 rounding of dᵢᵀdᵢ, and its left directions
    are dᵢ·Fᵢ − M·(F·Xᵢ·Fᵢ).
    """

    def __init__(self, found: Common, total: Spectrum, common: Part) -> None:
        count = common.right.shape[1]
        self._found = found
        self._factor = total.eigen.vectors(count) / total.everything[:count]
        self._inside = [product(self._factor.mT, with_sum) for with_sum in found.with_sum]
        self.grams = [
            squares - mirror(gram(inside))
            for squares, inside in zip(found.squares, self._inside, strict=True)
        ]

    def part(self, number: int, rest: Spectrum, rank: int) -> Part:
        """Return an expert's first directions outside."""
        factor, right = self._found.factors(number, rest, rank)
        correction = product(self._factor, product(self._inside[number], factor.double()))
        return Part(number, factor, right, -correction.to(factor.dtype))


def _compared(norm: float, rest: Spectrum) -> dict[str, float]:
    """Return ‖d‖ and the share of ‖d‖² that lies in the common space."""
    after = float(rest.everything.square().sum())
    explained = min(max(1 - after / norm**2, 0.0), 1.0) if norm > 0 else 1.0
    return {"norm": norm, "energy_in_common_space": explained}
