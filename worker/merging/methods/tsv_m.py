"""TSV-M (Gargiulo et al. 2025): W₀ + λ·orth(Û)·diag(Σ̂)·orth(V̂)ᵀ."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.contract.catalogue.subspace import TsvM
from worker.merging.interface import MergeInputs
from worker.merging.linalg.spectra import effective_rank, stable_rank
from worker.merging.linalg.subspaces import Bases, interference, kept_rank, orthogonal_sum
from worker.merging.linalg.task_spectra import TaskSpectrum, task_spectra


def merge(inputs: MergeInputs, parameters: TsvM) -> torch.Tensor:
    """Return the sum of each expert's first k singular directions, made orthogonal; 2-D only."""
    factor = parameters.noise_floor
    spectra = inputs.once(
        ("task_spectra", factor),
        lambda: task_spectra(
            inputs.tensors, inputs.base, unit_roundoff=inputs.unit_roundoff, factor=factor
        ),
    )
    return combine(inputs, spectra, parameters)


def combine(inputs: MergeInputs, spectra: Sequence[TaskSpectrum], parameters: TsvM) -> torch.Tensor:
    """Return the merged task matrix of experts already decomposed."""
    rank = kept_rank(inputs.tensors, parameters.rank_fraction)
    bases = Bases((inputs.tensors.shape[1], inputs.tensors.shape[2]), rank * len(spectra))
    strengths = torch.cat(
        [
            bases.add(spectrum.decomposition, weight * spectrum.singular_values[:rank])
            for spectrum, weight in zip(spectra, inputs.weights, strict=True)
        ]
    )
    inputs.diagnostics.update(
        experts=[spectrum.describe(rank) for spectrum in spectra],
        stable_rank=stable_rank(strengths.abs()),
        effective_rank=effective_rank(strengths.abs()),
        **interference(bases, strengths),
    )
    return orthogonal_sum(bases, strengths, parameters.orthogonalization)
