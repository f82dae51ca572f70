"""Iso-CTS (Marczak et al. 2025): Iso-C in which each expert's own directions have a place."""

from __future__ import annotations

import math

import torch

from app.contract.catalogue.subspace import IsoCts
from worker.merging.interface import MergeInputs
from worker.merging.linalg.subspaces import Bases, interference, orthogonal_sum
from worker.merging.linalg.sums import weighted_sum
from worker.merging.linalg.task_spectra import Rounding, TaskSpectrum


def merge(inputs: MergeInputs, parameters: IsoCts) -> torch.Tensor:
    """Return mean(σ)·orth(Û)·orth(V̂)ᵀ: the common block and the experts' own; 2-D only.

    The common block holds the top c directions of Σ wᵢdᵢ, an expert's block the top k of what the
    left projection dᵢ − U_c·U_cᵀ·dᵢ leaves of it. The mean is taken over all c + N·k places, of
    which those whose direction is noise count as 0.
    """
    rounding = Rounding.of(
        inputs.base, unit_roundoff=inputs.unit_roundoff, factor=parameters.noise_floor
    )
    m, n = inputs.tensors.shape[-2:]
    shared, own = places(min(m, n), len(inputs.tensors), parameters.common_space_fraction)
    bases = Bases((m, n), shared + own * len(inputs.tensors))
    strengths = [_add_common(bases, inputs, rounding, shared)]
    common = bases.u
    experts = []
    for matrix, weight in zip(inputs.tensors, inputs.weights, strict=True):
        spectrum = rounding.spectrum(matrix)
        left = _residual(matrix, spectrum, common, rounding)
        strengths.append(bases.add(left.decomposition, weight * left.singular_values[:own]))
        experts.append(
            spectrum.describe(own)
            | {
                "kept_rank": len(strengths[-1]),
                "energy_in_common_space": _explained(spectrum, left),
            }
        )
    every = torch.cat(strengths)
    mean = float(every.abs().sum()) / max(1, shared + own * len(experts))
    flat = mean * every.sign()
    inputs.diagnostics.update(
        experts=experts,
        common_rank=len(strengths[0]),
        mean_singular_value=mean,
        **interference(bases, flat),
    )
    return orthogonal_sum(bases, flat, parameters.orthogonalization)


def places(full: int, experts: int, fraction: float) -> tuple[int, int]:
    """Return c and k: how many directions are common, and how many are each expert's own."""
    # A share such as 0.29 of 100 is 29 although its product in binary falls just short of it.
    outside = full - math.floor(full * fraction + 1e-9)
    own = round(outside / experts)
    return max(0, full - own * experts), own


def _add_common(bases: Bases, inputs: MergeInputs, rounding: Rounding, rank: int) -> torch.Tensor:
    """Add the top directions of the sum; what they were taken from is not kept."""
    total = weighted_sum(inputs.tensors, inputs.weights, normalize=False)
    spectrum = rounding.times(math.hypot(*inputs.weights)).spectrum(total)
    return bases.add(spectrum.decomposition, spectrum.singular_values[:rank])


def _residual(
    matrix: torch.Tensor, spectrum: TaskSpectrum, u: torch.Tensor, rounding: Rounding
) -> TaskSpectrum:
    """Return the spectrum of the matrix without the columns' part in the space of U."""
    values = spectrum.decomposition.singular_values
    # U·(Uᵀ·d), never (U·Uᵀ)·d: of an embedding, U·Uᵀ has billions of entries.
    rest = torch.addmm(matrix, u, u.mT @ matrix, alpha=-1.0)
    return rounding.spectrum(rest, largest=float(values[0]) if len(values) else 0.0)


def _explained(spectrum: TaskSpectrum, left: TaskSpectrum) -> float:
    """Return which share of the task vector's energy lies in the common space; 1 of nothing."""
    before = float(spectrum.decomposition.singular_values.square().sum())
    after = float(left.decomposition.singular_values.square().sum())
    return min(max(1 - after / before, 0.0), 1.0) if before > 0 else 1.0
