"""Model Breadcrumbs (Davari 2023): task arithmetic without the largest and smallest changes."""

from __future__ import annotations

import math

import torch

from app.contract.catalogue.task_vector import Breadcrumbs
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.agreement import Band, banded_sum
from worker.merging.linalg.order_statistics import ALL, NONE
from worker.merging.linalg.sums import shares
from worker.merging.ranks import HistogramSurvey, RankSurvey


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
            return [(NONE, NONE)] * about.experts
        return finished.find([dropped - 1] * (dropped > 0) + [dropped + kept - 1])
    bands: list[Band] = [
        (found[-1], found[0] if len(found) > 1 else NONE) for found in finished.boundaries
    ]
    about.diagnostics["bands"] = [
        [None if large is NONE else large.value, least.value] for least, large in bands
    ]
    return bands


def merge(inputs: MergeInputs, parameters: Breadcrumbs, bands: list[Band] | None) -> torch.Tensor:
    """Return Σ wᵢ·(dᵢ within its band), divided by Σ wᵢ where `normalize` is on."""
    bands = bands or [(ALL, NONE)] * len(inputs.weights)
    factors = shares(inputs.weights, normalize=parameters.normalize)
    return banded_sum(inputs.tensors, factors, bands, start=inputs.start)
