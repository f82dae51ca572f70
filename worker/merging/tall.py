"""Spectral merges of tall tensors by row blocks: only Gram matrices of them are ever whole.

All that a method must know of an m x n tensor with m much larger than n are sums over its rows of
n x n products, and what it makes of a row depends on them and that row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self, TypeVar

import torch

from app.contract.catalogue.subspace import IsoCts, TsvM
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.kernels import mirror, product
from worker.merging.linalg.overlap import interference
from worker.merging.linalg.products import upper_gram
from worker.merging.linalg.subspaces import Bases, Rows, rows_of_sum
from worker.merging.linalg.sums import weighted_sum
from worker.merging.linalg.svd import decompose_grams
from worker.merging.linalg.task_spectra import Rounding, TaskSpectrum

T = TypeVar("T")


class Sums(Survey):
    """Sums over rows by name, float64; a survey of a kind says in `gather` what is added."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.base_squares, self.entries, self.unit_roundoff = 0.0, 0, 0.0
        self._answers: dict[Hashable, Any] = {}

    def add(self, inputs: MergeInputs) -> None:
        """Add the block's products."""
        self.unit_roundoff = inputs.unit_roundoff
        if inputs.base is not None:
            self.base_squares += float(torch.linalg.vector_norm(inputs.base)) ** 2
            self.entries += inputs.base.numel()
        self.gather(inputs)

    def gather(self, inputs: MergeInputs) -> None:
        """Add what this kind of survey wants of a block."""
        raise NotImplementedError

    def join(self, later: Self) -> None:
        """Add the sums of later blocks, which are used up."""
        self.base_squares += later.base_squares
        self.entries += later.entries
        for name, total in later.sums.items():
            self.sums[name] += total
        later.sums.clear()

    def add_gram(self, name: str, matrix: torch.Tensor) -> None:
        """Add MᵀM of a block's matrix, float32 or float64; the upper half is kept."""
        self.sums[name] = upper_gram(matrix, self.sums.get(name))

    def add_product(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add LᵀR of a block's float32 matrices."""
        block = product(left.mT, right.double())
        self.sums[name] = block.add_(self.sums[name]) if name in self.sums else block

    def rounding(self, factor: float) -> Rounding:
        """Return the rounding of the stored weights, of which noise floors come."""
        rms = (self.base_squares / self.entries) ** 0.5 if self.entries else 0.0
        return Rounding(self.unit_roundoff, rms, factor)

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """Return what follows from the sums, found at the first call with this key.

        `survey` is asked for each stretch, and in a sweep for each point.
        """
        if key not in self._answers:
            self._answers[key] = find()
        found: T = self._answers[key]
        return found


class TaskGrams(Sums):
    """Each expert's dᵢᵀdᵢ: its singular values and right singular vectors follow."""

    @property
    def question(self) -> Hashable:
        """The same for all parameters."""
        return "each expert's Gram matrix"

    def gather(self, inputs: MergeInputs) -> None:
        """Add each expert's product."""
        for number, matrix in enumerate(inputs.tensors):
            self.add_gram(f"{number}", matrix)

    def spectra(self, shape: tuple[int, ...], factor: float) -> list[TaskSpectrum]:
        """Return one spectrum an expert, as `task_spectra` does: what sweeps reuse."""
        rounding, (m, n) = self.rounding(factor), shape
        grams = [self.sums[f"{number}"] for number in range(len(self.sums))]
        return [rounding.separate(found, (m, n)) for found in decompose_grams(grams)]


class BasisGram(Sums):
    """ÛᵀÛ, of rows of Û that are made from rows of the task matrices."""

    def __init__(self, bases: Bases, strengths: torch.Tensor) -> None:
        super().__init__()
        self._bases, self.strengths = bases, strengths

    def gather(self, inputs: MergeInputs) -> None:
        """Add the product of the block's rows."""
        self.add_gram("left", self._bases.measured(inputs.tensors))

    def finish(self, about: About, parameters: TsvM | IsoCts) -> Rows:
        """Return what makes the merged rows, and describe the bases."""
        bases = self._bases
        bases.left = bases.left_of(mirror(self.sums["left"].clone()))
        about.diagnostics.update(interference(bases, self.strengths))
        return rows_of_sum(bases, self.strengths, parameters.orthogonalization)


class CommonGrams(Sums):
    """MᵀM of M = Σ wᵢdᵢ, and of each expert dᵢᵀdᵢ and Mᵀdᵢ."""

    @property
    def question(self) -> Hashable:
        """The same for all parameters."""
        return "the Gram matrices of the experts, their sum, and both"

    def gather(self, inputs: MergeInputs) -> None:
        """Add the block's."""
        total = weighted_sum(inputs.tensors, inputs.weights, normalize=False)
        self.add_gram("sum", total)
        for number, matrix in enumerate(inputs.tensors):
            self.add_gram(f"{number}", matrix)
            self.add_product(f"sum-{number}", total, matrix)

    def squares(self, number: int) -> torch.Tensor:
        """Return dᵢᵀdᵢ, the upper half."""
        return self.sums[f"{number}"]

    def with_sum(self, number: int) -> torch.Tensor:
        """Return Mᵀdᵢ."""
        return self.sums[f"sum-{number}"]


def survey_bases(
    about: About,
    parameters: Any,
    finished: TaskGrams | BasisGram | None,
    keep: Callable[[About, Sequence[TaskSpectrum], Any], tuple[Bases, torch.Tensor]],
) -> Any:
    """Return the next survey of TSV-M's kind, and at last what makes a tall tensor's rows.

    None of a tensor that is merged whole. `keep` returns the experts' bases and strengths.
    """
    if not parameters.streams(about.shape):
        return None
    if finished is None:
        return TaskGrams()
    if isinstance(finished, BasisGram):
        return finished.finish(about, parameters)
    grams, factor = finished, parameters.noise_floor

    def kept() -> tuple[Bases, torch.Tensor]:
        spectra = grams.once(("task_spectra", factor), lambda: grams.spectra(about.shape, factor))
        return keep(about, spectra, parameters)

    return BasisGram(*grams.once(parameters, kept))
