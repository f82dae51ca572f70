"""TSV-M (Gargiulo et al. 2025): W₀ + λ·orth(Û)·diag(Σ̂)·orth(V̂)ᵀ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from app.contract.catalogue.subspace import TsvM
from worker.merging.interface import About, MergeInputs
from worker.merging.linalg.overlap import interference
from worker.merging.linalg.spectra import effective_rank, stable_rank
from worker.merging.linalg.subspaces import Bases, Rows, kept_rank, orthogonal_sum
from worker.merging.linalg.task_spectra import TaskSpectrum, task_spectra
from worker.merging.tall import BasisGram, TaskGrams, survey_bases


def survey(about: About, parameters: TsvM, finished: TaskGrams | BasisGram | None) -> Any:
    """Return what makes the rows of a tall tensor's merge; None of one that is merged whole."""
    return survey_bases(about, parameters, finished, keep)


def merge(inputs: MergeInputs, parameters: TsvM, rows: Rows | None) -> torch.Tensor:
    """Return the sum of each expert's first k singular directions, made orthogonal; 2-D only."""
    if rows is not None:
        return rows(inputs.tensors)
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
    bases, strengths = keep(inputs, spectra, parameters)
    inputs.diagnostics.update(interference(bases, strengths))
    return orthogonal_sum(bases, strengths, parameters.orthogonalization)


def keep(
    tensor: About | MergeInputs, spectra: Sequence[TaskSpectrum], parameters: TsvM
) -> tuple[Bases, torch.Tensor]:
    """Return the experts' bases of the merged rank and their strengths, and describe them."""
    rank = kept_rank(tensor.shape, len(spectra), parameters.rank_fraction)
    bases = Bases.of(tensor.shape, spectra, rank)
    strengths = torch.cat(
        [
            bases.add(spectrum.decomposition, weight * spectrum.singular_values[:rank])
            for spectrum, weight in zip(spectra, tensor.weights, strict=True)
        ]
    )
    tensor.diagnostics.update(
        experts=[spectrum.describe(rank) for spectrum in spectra],
        stable_rank=stable_rank(strengths.abs()),
        effective_rank=effective_rank(strengths.abs()),
    )
    return bases, strengths
