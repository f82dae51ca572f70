"""Model Stock (Jang et al. 2024): t·mean(Wᵢ) + (1−t)·W₀, t = N·c / (1 + (N−1)c)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from app.contract.catalogue.parameter_space import ModelStock
from worker.merging.combines import Linear
from worker.merging.linalg.ops import weighted_sum
from worker.merging.linalg.sphere import Doubles, cosines
from worker.merging.method import Block, Combine, Notes, Steps, Subject, merges
from worker.merging.reductions import InnerProducts

_SINGULAR = 1e-6
"""Below this the denominator of t says nothing: experts as opposed as N can be."""
_OUTSIDE = "t_outside_unit_interval"


@merges(ModelStock)
def model_stock(x: Subject, p: ModelStock) -> Steps:
    """Return t·mean(dᵢ), t from the mean cosine c over the pairs; by rows with `filter_wise`.

    A t outside [0, 1] goes beyond the average, or behind the base: a warning says so.
    """
    if p.filter_wise:
        return ByRows(x.name)
    gram = yield InnerProducts()
    cosine = _mean_cosine(cosines(gram))
    t = float(_interpolation(cosine, x.experts))
    x.notes.diagnostics.update(mean_cosine=float(cosine), t=t)
    if not 0.0 <= t <= 1.0:
        x.notes.warn(_OUTSIDE, f"{x.name}: Model Stock's t is {t:.3g}, outside [0, 1].")
    return Linear([t / x.experts] * x.experts)


@dataclass(frozen=True)
class ByRows(Combine):
    """t·mean(dᵢ) with a t for each row."""

    name: str

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the mean, scaled row by row."""
        tensors = block.tensors
        count = len(tensors)
        rows = tensors.flatten(2) if tensors.ndim > 2 else tensors.unsqueeze(1)
        by_row = rows.transpose(0, 1).double()
        t = _interpolation(_mean_cosine(cosines((by_row @ by_row.mT).numpy())), count)
        outside = int(((t < 0.0) | (t > 1.0)).sum())
        notes.count("rows", len(t))
        notes.count("rows_with_t_outside_unit_interval", outside)
        if outside:
            notes.warn(_OUTSIDE, f"{self.name}: Model Stock's t lies outside [0, 1] in some rows.")
        mean = weighted_sum(rows, [1.0 / count] * count)
        return mean.mul_(torch.from_numpy(t).float().unsqueeze(-1)).view(tensors.shape[1:])


def _mean_cosine(matrix: Doubles) -> Doubles:
    """Return the mean over the pairs."""
    first, second = np.triu_indices(matrix.shape[-1], 1)
    mean: Doubles = matrix[..., first, second].mean(-1)
    return mean


def _interpolation(cosine: Doubles, count: int) -> Doubles:
    """Return t; 0 where its denominator vanishes."""
    denominator = 1.0 + (count - 1) * cosine
    singular = np.abs(denominator) < _SINGULAR
    return np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))
