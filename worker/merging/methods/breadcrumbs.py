"""Model Breadcrumbs (Davari 2023): task arithmetic without the largest and smallest changes."""

from __future__ import annotations

import math

import torch

from app.contract.catalogue.task_vector import Breadcrumbs
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.order_statistics import Boundary, keep_largest
from worker.merging.linalg.sums import weighted_sum
from worker.merging.ranks import HistogramSurvey, RankSurvey

Band = tuple[Boundary | None, Boundary | None]
"""The boundaries of the sizes that are left out as too large, and of those not too small.

None where there are none: nothing is too large, or nothing is kept.
"""


def survey(
    about: About, parameters: Breadcrumbs, finished: HistogramSurvey | RankSurvey | None
) -> Survey | list[Band] | None:
    """Return each expert's band of sizes; None where all is kept."""
    if parameters.passes == 1:
        return None
    if finished is None:
        return HistogramSurvey(about.experts)
    if isinstance(finished, HistogramSurvey):
        entries = finished.histogram.entries
        dropped = math.floor(parameters.gamma * entries)
        kept = min(math.floor(parameters.density * entries), entries - dropped)
        if kept == 0:
            return [(None, None)] * about.experts
        return finished.find([dropped - 1] * (dropped > 0) + [dropped + kept - 1])
    bands: list[Band] = [
        (found[0] if len(found) > 1 else None, found[-1]) for found in finished.boundaries
    ]
    about.diagnostics["bands"] = [[b.value if b else None for b in band] for band in bands]
    return bands


def merge(inputs: MergeInputs, parameters: Breadcrumbs, bands: list[Band] | None) -> torch.Tensor:
    """Return Σ wᵢ·(dᵢ within its band), divided by Σ wᵢ where `normalize` is on."""
    kept = inputs.tensors.flatten(1)
    if bands is not None:
        pairs = zip(kept, bands, strict=True)
        kept = torch.stack([_within(values, band, inputs.start) for values, band in pairs])
    merged = weighted_sum(kept, inputs.weights, normalize=parameters.normalize)
    return merged.view(inputs.tensors.shape[1:])


def _within(values: torch.Tensor, band: Band, start: int) -> torch.Tensor:
    too_large, large_enough = band
    if large_enough is None:
        return torch.zeros_like(values)
    kept = keep_largest(values, large_enough, start)
    return kept if too_large is None else kept.sub_(keep_largest(values, too_large, start))
