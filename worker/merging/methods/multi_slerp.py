"""Multi-SLERP (Goddard 2025): m/‖m‖·Σ wᵢ‖vᵢ‖, m = Σ wᵢvᵢ/‖vᵢ‖."""

from __future__ import annotations

import math

import numpy as np

from app.contract.catalogue.parameter_space import MultiSlerp
from app.contract.errors import UndefinedMergeError
from worker.merging.gram import GramSurvey
from worker.merging.interface import About
from worker.merging.linalg.inner_products import inverses
from worker.merging.linalg.sphere import Antipodal, mean_direction


def survey(
    about: About, parameters: MultiSlerp, finished: GramSurvey | None
) -> GramSurvey | list[float]:
    """Return the coefficients of the experts; UndefinedMergeError where three or more cancel.

    The published algorithm goes on to map the mean of the tangents at m back to the sphere; that
    mean is zero, so m is where it ends.
    """
    if finished is None:
        return GramSurvey(about.experts)
    finished.describe(about)
    norms = finished.norms
    shares = np.array(about.weights) / math.fsum(about.weights)
    inverse = inverses(norms)
    if not inverse.any():
        return [0.0] * about.experts
    try:
        direction = mean_direction(finished.cosines, np.where(norms > 0.0, shares, 0.0))
    except Antipodal:
        if about.experts == 2:
            return [weight / math.fsum(about.weights) for weight in about.weights]
        raise UndefinedMergeError(
            f"{about.name}: the checkpoints' directions cancel, so their average has none. Change "
            "the weights, or use a rule to give this tensor another method."
        ) from None
    found: list[float] = (direction * inverse * (shares * norms).sum()).tolist()
    return found


def coefficients(
    weights: tuple[float, ...], parameters: MultiSlerp, known: list[float]
) -> list[float]:
    """Return the experts' coefficients, of the tensors as they are: what the survey found."""
    return known
