"""Iso-CTS (Marczak et al. 2025): Iso-C in which each expert's own directions have a place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from app.contract.catalogue.subspace import IsoCts
from worker.merging.interface import MergeInputs
from worker.merging.linalg.subspaces import Subspace, interference, orthogonal_sum
from worker.merging.linalg.sums import weighted_sum
from worker.merging.linalg.task_spectra import Rounding, TaskSpectrum


def merge(inputs: MergeInputs, parameters: IsoCts) -> torch.Tensor:
    """Return mean(σ)·orth(Û)·orth(V̂)ᵀ: the experts' own blocks, then the common one; 2-D only.

    The common block holds the top c directions of Σ wᵢdᵢ, an expert's block the top k of what the
    left projection dᵢ − U_c·U_cᵀ·dᵢ leaves of it. The mean is taken over all c + N·k places, of
    which those whose direction is noise count as 0.
    """
    rounding = Rounding.of(
        inputs.base, unit_roundoff=inputs.unit_roundoff, factor=parameters.noise_floor
    )
    shape = inputs.tensors.shape[-2:]
    shared, own = places(min(shape), len(inputs.tensors), parameters.common_space_fraction)
    common = _common(inputs, rounding, shared)
    blocks, experts = [], []
    for matrix, weight in zip(inputs.tensors, inputs.weights, strict=True):
        spectrum = rounding.spectrum(matrix)
        left = _residual(matrix, spectrum, common.u, rounding)
        sizes = weight * left.singular_values[:own]
        blocks.append(Subspace.dominant(left.decomposition, sizes))
        explained = 1 - float(left.decomposition.singular_values.norm() ** 2) / max(
            float(spectrum.decomposition.singular_values.norm() ** 2), 1e-300
        )
        experts.append(
            spectrum.describe(own)
            | {"kept_rank": len(sizes), "energy_in_common_space": min(max(explained, 0.0), 1.0)}
        )
    blocks.append(common)
    mean = _mean(blocks, shared + own * len(experts))
    inputs.diagnostics.update(
        experts=experts,
        common_rank=len(common.strengths),
        mean_singular_value=mean,
        **interference(blocks),
    )
    flat = [Subspace(block.u, mean * block.strengths.sign(), block.v) for block in blocks]
    return orthogonal_sum(flat, parameters.orthogonalization)


def places(full: int, experts: int, fraction: float) -> tuple[int, int]:
    """Return c and k: how many directions are common, and how many are each expert's own."""
    # A share such as 0.29 of 100 is 29 although its product in binary falls just short of it.
    outside = full - math.floor(full * fraction + 1e-9)
    own = round(outside / experts)
    return max(0, full - own * experts), own


def _common(inputs: MergeInputs, rounding: Rounding, rank: int) -> Subspace:
    """Return the top directions of the sum; what they were taken from is not kept."""
    total = weighted_sum(inputs.tensors, inputs.weights, normalize=False)
    spectrum = rounding.times(math.hypot(*inputs.weights)).spectrum(total)
    return Subspace.dominant(spectrum.decomposition, spectrum.singular_values[:rank])


def _residual(
    matrix: torch.Tensor, spectrum: TaskSpectrum, u: torch.Tensor, rounding: Rounding
) -> TaskSpectrum:
    """Return the spectrum of the matrix without the columns' part in the space of U."""
    values = spectrum.decomposition.singular_values
    # U·(Uᵀ·d), never (U·Uᵀ)·d: of an embedding, U·Uᵀ has billions of entries.
    rest = torch.addmm(matrix, u, u.mT @ matrix, alpha=-1.0)
    return rounding.spectrum(rest, largest=float(values[0]) if len(values) else 0.0)


def _mean(blocks: Sequence[Subspace], count: int) -> float:
    return sum(float(block.strengths.abs().sum()) for block in blocks) / max(1, count)
