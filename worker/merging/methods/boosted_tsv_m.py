"""BoostedTSV-M (Carvalho et al. 2026): TSV-M of boosted spectra, σ′ⱼ = max(σⱼ, σ_c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from app.contract.catalogue.subspace import BoostedTsvM
from worker.merging.interface import About, MergeInputs
from worker.merging.linalg.overlap import interference
from worker.merging.linalg.spectra import boost, effective_rank, stable_rank
from worker.merging.linalg.subspaces import Bases, Rows, kept_rank, orthogonal_sum
from worker.merging.linalg.task_spectra import TaskSpectrum, task_spectra
from worker.merging.tall import BasisGram, TaskGrams, survey_bases


def survey(about: About, parameters: BoostedTsvM, finished: TaskGrams | BasisGram | None) -> Any:
    """Return what makes the rows of a tall tensor's merge; None of one that is merged whole."""
    return survey_bases(about, parameters, finished, keep)


def merge(inputs: MergeInputs, parameters: BoostedTsvM, rows: Rows | None) -> torch.Tensor:
    """Return the sum of each expert's first k directions, boosted, made orthogonal; 2-D only."""
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


def combine(
    inputs: MergeInputs, spectra: Sequence[TaskSpectrum], parameters: BoostedTsvM
) -> torch.Tensor:
    """Return the merged task matrix of experts already decomposed."""
    bases, strengths = keep(inputs, spectra, parameters)
    inputs.diagnostics.update(interference(bases, strengths))
    return orthogonal_sum(bases, strengths, parameters.orthogonalization)


def keep(
    tensor: About | MergeInputs, spectra: Sequence[TaskSpectrum], parameters: BoostedTsvM
) -> tuple[Bases, torch.Tensor]:
    """Return the experts' bases and boosted strengths, and describe them."""
    rank = kept_rank(tensor.shape, len(spectra), parameters.rank_fraction)
    boosted = [boost(s.singular_values, parameters.beta, parameters.energy) for s in spectra]
    bases = Bases.of(tensor.shape, spectra, rank)
    strengths = torch.cat(
        [
            bases.add(spectrum.decomposition, weight * values[:rank])
            for spectrum, (values, _), weight in zip(spectra, boosted, tensor.weights, strict=True)
        ]
    )
    before = _strengths([s.singular_values[:rank] for s in spectra], tensor.weights)
    after = strengths.abs()
    tensor.diagnostics.update(
        experts=[
            spectrum.describe(rank) | {"singular_value_at_beta": threshold}
            for spectrum, (_, threshold) in zip(spectra, boosted, strict=True)
        ],
        stable_rank_before=stable_rank(before),
        stable_rank_after=stable_rank(after),
        effective_rank_before=effective_rank(before),
        effective_rank_after=effective_rank(after),
    )
    return bases, strengths


def _strengths(spectra: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the spectrum of the merged matrix, whose bases are orthonormal: all of them."""
    return torch.cat([abs(w) * values for values, w in zip(spectra, weights, strict=True)])
