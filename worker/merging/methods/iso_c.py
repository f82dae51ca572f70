"""Iso-C (Marczak et al. 2025): W₀ + λ·mean(σ)·U·Vᵀ, with U·diag(σ)·Vᵀ = Σ wᵢdᵢ."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Self

import numpy as np
import torch

from app.contract.catalogue.subspace import IsoC
from worker.merging.interface import About, MergeInputs
from worker.merging.linalg.inner_products import (
    Doubles,
    described,
    symmetric,
)
from worker.merging.linalg.polar import isometry_multiplier
from worker.merging.linalg.products import multiply
from worker.merging.linalg.svd import decompose_gram
from worker.merging.linalg.task_spectra import Rounding, TaskSpectrum
from worker.merging.tall import Sums


class SumGram(Sums):
    """MᵀM of M = Σ wᵢdᵢ, and the experts' inner products."""

    def __init__(self) -> None:
        super().__init__()
        self.products = np.zeros(())

    @property
    def question(self) -> Hashable:
        """The same for all parameters."""
        return "the Gram matrix of the sum"

    def gather(self, inputs: MergeInputs) -> None:
        """Add the block's."""
        self.add_gram("sum", inputs.tensors[0])
        self.products = self.products + _inner_products(inputs)

    def join(self, later: Self) -> None:
        """Add those of later blocks."""
        super().join(later)
        self.products = self.products + later.products


def survey(
    about: About, parameters: IsoC, finished: SumGram | None
) -> SumGram | torch.Tensor | None:
    """Return what a tall tensor's rows are multiplied by; None of one that is merged whole."""
    if not parameters.streams(about.shape):
        return None
    if finished is None:
        return SumGram()
    rounding, (m, n) = (
        _rounding_of_sum(finished.rounding(parameters.noise_floor), about),
        about.shape,
    )
    spectrum = rounding.separate(decompose_gram(finished.sums["sum"]), (m, n))
    return _flattened(spectrum, finished.products, about)


def merge(inputs: MergeInputs, parameters: IsoC, factor: torch.Tensor | None) -> torch.Tensor:
    """Return the sum with every singular value above its noise floor made their mean; 2-D only.

    The mean is taken over all min(m, n) places, of which those of noise count as 0.
    """
    (total,) = inputs.tensors
    if factor is not None:
        return multiply(total, factor)
    stored = Rounding.of(
        inputs.base, unit_roundoff=inputs.unit_roundoff, factor=parameters.noise_floor
    )
    spectrum = _rounding_of_sum(stored, inputs).spectrum(total)
    factor = _flattened(spectrum, _inner_products(inputs), inputs)
    result = multiply(spectrum.decomposition.long_side, factor)
    return result.mT.contiguous() if spectrum.decomposition.transposed else result


def _rounding_of_sum(stored: Rounding, tensor: About | MergeInputs) -> Rounding:
    return stored.times(math.hypot(*tensor.weights))


def _flattened(
    spectrum: TaskSpectrum, products: Doubles, tensor: About | MergeInputs
) -> torch.Tensor:
    """Return what makes rows of mean(σ)·U·Vᵀ from rows of the sum (or of its transpose)."""
    rank, full = len(spectrum.singular_values), min(tensor.shape)
    mean = float(spectrum.singular_values.sum()) / full
    told = described(products)
    tensor.diagnostics.update(
        experts=[{"norm": norm} for norm in told["norms"]],
        cosines=told["cosines"],
        sum=spectrum.describe(full),
        mean_singular_value=mean,
        stable_rank_after=float(rank),
        effective_rank_after=float(rank),
    )
    return isometry_multiplier(spectrum.decomposition, rank).mul_(mean)


def _inner_products(inputs: MergeInputs) -> Doubles:
    """Return ⟨dᵢ, dⱼ⟩ of a block."""
    assert inputs.inner_products is not None
    return symmetric(inputs.inner_products)
