"""Model Stock (Jang et al. 2024): t·mean(Wᵢ) + (1−t)·W₀, t = N·c / (1 + (N−1)c)."""

from __future__ import annotations

import numpy as np
import torch

from app.contract.catalogue.parameter_space import ModelStock
from worker.merging.gram import GramSurvey
from worker.merging.interface import About, MergeInputs, MergeWarning
from worker.merging.linalg.inner_products import Doubles, cosines
from worker.merging.linalg.sums import weighted_sum

_SINGULAR = 1e-6
"""Below this the denominator of t says nothing: experts as opposed as N can be."""


def survey(
    about: About, parameters: ModelStock, finished: GramSurvey | None
) -> GramSurvey | float | None:
    """Return t, from the task vectors' Gram matrix; with `filter_wise`, rows tell for themselves.

    A t outside [0, 1] goes beyond the average, or behind the base: a warning says so.
    """
    if parameters.filter_wise:
        return None
    if finished is None:
        return GramSurvey(about.experts)
    finished.describe(about)
    cosine = _mean_cosine(finished.cosines)
    t = float(_interpolation(cosine, about.experts))
    about.diagnostics.update(mean_cosine=float(cosine), t=t)
    if not 0.0 <= t <= 1.0:
        message = f"{about.name}: Model Stock's t is {t:.3g}, outside [0, 1]."
        about.warnings.append(MergeWarning("t_outside_unit_interval", message))
    return t


def coefficients(
    weights: tuple[float, ...], parameters: ModelStock, t: float | None
) -> list[float] | None:
    """Return those of t·mean(dᵢ); None where each row has a t of its own."""
    return None if t is None else [t / len(weights)] * len(weights)


def merge(inputs: MergeInputs, parameters: ModelStock, t: None) -> torch.Tensor:
    """Return t·mean(dᵢ), row by row."""
    count = len(inputs.tensors)
    rows = inputs.tensors.flatten(2) if inputs.tensors.ndim > 2 else inputs.tensors.unsqueeze(1)
    each = torch.from_numpy(_interpolation(_mean_cosine(_row_cosines(rows)), count))
    outside = int(((each < 0.0) | (each > 1.0)).sum())
    inputs.count("rows", len(each))
    inputs.count("rows_with_t_outside_unit_interval", outside)
    if outside:
        message = f"{inputs.name}: Model Stock's t lies outside [0, 1] in some rows."
        inputs.warnings.append(MergeWarning("t_outside_unit_interval", message))
    mean = weighted_sum(rows, [1.0] * count, normalize=True)
    return mean.mul_(each.float().unsqueeze(-1)).view(inputs.tensors.shape[1:])


def _row_cosines(rows: torch.Tensor) -> Doubles:
    """Return the cosines between experts, row by row: (rows, experts, experts), float64."""
    by_row = rows.transpose(0, 1).double()
    return cosines((by_row @ by_row.mT).numpy())


def _mean_cosine(matrix: Doubles) -> Doubles:
    """Return the mean over the pairs."""
    count = matrix.shape[-1]
    first, second = np.triu_indices(count, 1)
    mean: Doubles = matrix[..., first, second].mean(-1)
    return mean


def _interpolation(cosine: Doubles, count: int) -> Doubles:
    """Return t, 0 where its denominator vanishes."""
    denominator = 1.0 + (count - 1) * cosine
    singular = np.abs(denominator) < _SINGULAR
    return np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))
