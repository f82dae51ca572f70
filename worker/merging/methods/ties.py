"""TIES (Yadav et al. 2023): W₀ + λ · the mean of the trimmed dᵢ that have the elected sign."""

from __future__ import annotations

import math

import torch

from app.contract.catalogue.task_vector import Ties
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.agreement import agreeing_sum, elect_signs
from worker.merging.linalg.order_statistics import Boundary, keep_largest
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
    trimmed = [tensor.reshape(-1) for tensor in inputs.tensors]
    if boundaries is not None:
        pairs = zip(trimmed, boundaries, strict=True)
        trimmed = [keep_largest(values, b, inputs.start) for values, b in pairs]
    weighted = zip(trimmed, inputs.weights, strict=True)
    signs = elect_signs([part if weight == 1.0 else part * weight for part, weight in weighted])
    merged, agreeing = agreeing_sum(trimmed, inputs.weights, signs, normalize=parameters.normalize)
    inputs.count("agreeing", agreeing)
    return merged.view(inputs.tensors.shape[1:])
