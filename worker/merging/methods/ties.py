"""TIES (Yadav et al. 2023): W₀ + λ · the mean of the trimmed dᵢ that have the elected sign."""

from __future__ import annotations

import math

import torch

from app.contract.catalogue.task_vector import Ties
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.agreement import agreeing_sum
from worker.merging.linalg.order_statistics import Boundary
from worker.merging.ranks import HistogramSurvey, RankSurvey


def survey(
    about: About, parameters: Ties, finished: HistogramSurvey | RankSurvey | None
) -> Survey | list[Boundary] | None:
    """Return the boundary of each expert's k largest changes; None where all are kept."""
    if parameters.density == 1.0:
        return None
    if finished is None:
        return HistogramSurvey(about.experts)
    if isinstance(finished, HistogramSurvey):
        kept = max(1, math.floor(parameters.density * finished.histogram.entries))
        about.diagnostics["kept_of_each"] = kept
        return finished.find([kept - 1])
    boundaries = [boundary for (boundary,) in finished.boundaries]
    about.diagnostics["thresholds"] = [boundary.value for boundary in boundaries]
    return boundaries


def merge(inputs: MergeInputs, parameters: Ties, boundaries: list[Boundary] | None) -> torch.Tensor:
    """Return the mean (or sum) of what agrees."""
    merged, agreeing = agreeing_sum(
        inputs.tensors,
        inputs.weights,
        boundaries,
        start=inputs.start,
        normalize=parameters.normalize,
    )
    inputs.count("agreeing", agreeing)
    return merged
