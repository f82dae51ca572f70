"""KnOTS (Stoica et al. 2025): TIES in the space that the singular vectors of [d₁ … dₙ] span."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.contract.catalogue.subspace import Knots
from worker.merging.combines import Elected
from worker.merging.linalg.ops import apply, product
from worker.merging.linalg.spectrum import Rounding, Spectrum, spectra_of
from worker.merging.method import Block, Combine, Notes, Reduction, State, Steps, Subject, merges
from worker.merging.reductions import add_base, add_gram, rounding_of


@merges(Knots)
def knots(x: Subject, p: Knots) -> Steps:
    """Write each dᵢ as U·ΣVᵢᵀ, trim and elect among the ΣVᵢᵀ, and multiply by U again.

    UΣ·[V₁ᵀ … Vₙᵀ] is the singular value decomposition of the dᵢ side by side, each with a row for
    every output. Directions under the noise floor are left out.
    """
    found: SideBySide = yield Concatenation()
    spectrum = found.spectrum.above(found.rounding, p.noise_floor)
    values = spectrum.singular_values
    vectors = spectrum.eigen.vectors(len(values))
    if x.transposed:  # the vectors are U, the aligned are U'dᵢ
        aligned = [product(matrix, vectors).float() for matrix in found.tensors]
    else:  # the vectors are V
        aligned = [part.float() for part in (vectors * values).tensor_split(x.experts)]
    merged, notes = _ties(x, p, torch.stack(aligned).cpu())
    x.notes.diagnostics.update(directions=len(values), **notes)
    merged = merged.to(vectors.device).double()
    if x.transposed:
        return Made(product(merged, vectors.mT.contiguous()).float())
    factors = product(vectors / values, merged.mT.contiguous()).float()
    return OfEach(factors.tensor_split(x.experts))


def _ties(x: Subject, p: Knots, aligned: torch.Tensor) -> tuple[torch.Tensor, dict[str, object]]:
    """Return the elected mean of what trimming leaves, and what there is to say of it."""
    count = aligned[0].numel()
    kept = max(1, math.floor(p.density * count)) if count else 0
    cuts = [
        float(part.abs().flatten().kthvalue(count - kept + 1).values) if count else 0.0
        for part in aligned
    ]
    elected = Elected(x.weights, cuts, normalize=p.normalize)
    return elected(Block(x.weights, aligned), Notes()), {
        "experts": [{"norm": float(part.double().norm())} for part in aligned],
        "kept_of_each": kept,
        "thresholds": cuts,
    }


@dataclass(frozen=True, eq=False)
class SideBySide:
    """The spectrum of the task matrices side by side, and their rounding.

    Attributes:
        tensors: the task matrices themselves, where they are transposed, and so in one block.
    """

    spectrum: Spectrum
    rounding: Rounding
    tensors: torch.Tensor


@dataclass(frozen=True)
class Concatenation(Reduction):
    """The Gram matrix of [d₁ … dₙ]: of its columns; of its rows where the dᵢ are transposed."""

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add the block's."""
        add_base(state, block)
        if subject.transposed:
            state["tensors"] = block.tensors
            for matrix in block.tensors:
                add_gram(state, "gram", matrix)
        else:
            add_gram(state, "gram", torch.cat(list(block.tensors), 1))

    def finish(self, state: State, subject: Subject) -> SideBySide:
        """Return the spectrum."""
        (spectrum,) = spectra_of([state.pop("gram")])
        rounding = rounding_of(state, subject)
        rows, columns = subject.shape
        shape = (
            (subject.experts * rows, columns)
            if subject.transposed
            else (rows, subject.experts * columns)
        )
        wide = Rounding(rounding.unit_roundoff, rounding.base_rms, shape)
        return SideBySide(spectrum, wide, state.get("tensors", torch.empty(0)))


@dataclass(frozen=True, eq=False)
class Made(Combine):
    """A whole matrix, made already."""

    matrix: torch.Tensor

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return it."""
        return self.matrix


@dataclass(frozen=True, eq=False)
class OfEach(Combine):
    """Σ dᵢ·Fᵢ, row by row."""

    factors: Sequence[torch.Tensor]

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the rows of the sum."""
        total = torch.zeros_like(block.tensors[0])
        for matrix, factor in zip(block.tensors, self.factors, strict=True):
            total += apply(matrix, factor.contiguous())
        return total
