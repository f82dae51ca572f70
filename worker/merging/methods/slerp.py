"""SLERP (Shoemake 1985): sin((1−t)θ)/sin θ·W₀ + sin(tθ)/sin θ·W₁."""

from __future__ import annotations

import math

import torch

from app.contract.catalogue.parameter_space import Slerp
from worker.merging.gram import GramSurvey
from worker.merging.interface import About, MergeInputs
from worker.merging.linalg.sphere import slerp_coefficients
from worker.merging.linalg.sums import weighted_sum

_LEAST_SINE = math.sqrt(1.0 - 0.9995**2)
"""Of directions closer than this (or as far from opposite) the straight line is taken."""


def survey(
    about: About, parameters: Slerp, finished: GramSurvey | None
) -> GramSurvey | list[float]:
    """Return the two coefficients, which the angle tells."""
    if finished is None:
        return GramSurvey(about.experts)
    finished.describe(about)
    cosine = finished.cosines[0, 1]
    both = slerp_coefficients(cosine, parameters.t, least_sine=_LEAST_SINE)
    return [float(c) for c in both]


def merge(inputs: MergeInputs, parameters: Slerp, coefficients: list[float]) -> torch.Tensor:
    """Return the combination of the two tensors as they are, not made unit vectors."""
    return weighted_sum(inputs.tensors, coefficients, normalize=False)
