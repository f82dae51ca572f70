"""Iso-C (Marczak et al. 2025): W₀ + λ·mean(σ)·U·Vᵀ, with U·diag(σ)·Vᵀ = Σ wᵢdᵢ."""

from __future__ import annotations

import math

import torch

from app.contract.catalogue.subspace import IsoC
from worker.merging.interface import MergeInputs
from worker.merging.linalg.polar import partial_isometry
from worker.merging.linalg.sums import weighted_sum
from worker.merging.linalg.task_spectra import Rounding


def merge(inputs: MergeInputs, parameters: IsoC) -> torch.Tensor:
    """Return the sum with every singular value above its noise floor made their mean; 2-D only.

    The mean is taken over all min(m, n) places, of which those of noise count as 0.
    """
    rounding = Rounding.of(
        inputs.base, unit_roundoff=inputs.unit_roundoff, factor=parameters.noise_floor
    )
    total = weighted_sum(inputs.tensors, inputs.weights, normalize=False)
    spectrum = rounding.times(math.hypot(*inputs.weights)).spectrum(total)
    rank, full = len(spectrum.singular_values), min(total.shape)
    mean = float(spectrum.singular_values.sum()) / full
    inputs.diagnostics.update(
        experts=[{"norm": float(torch.linalg.vector_norm(d))} for d in inputs.tensors],
        sum=spectrum.describe(full),
        mean_singular_value=mean,
        stable_rank_after=float(rank),
        effective_rank_after=float(rank),
    )
    return partial_isometry(spectrum.decomposition, rank).mul_(mean).contiguous()
