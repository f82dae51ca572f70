"""SLERP (Shoemake 1985): sin((1−t)θ)/sin θ·W₀ + sin(tθ)/sin θ·W₁."""

from __future__ import annotations

import math

from app.contract.catalogue.parameter_space import Slerp
from worker.merging.gram import GramSurvey
from worker.merging.interface import About
from worker.merging.linalg.sphere import slerp_coefficients

_LEAST_SINE = math.sqrt(1.0 - 0.9995**2)
"""Of directions closer than this (or as far from opposite) the straight line is taken."""


def survey(
    about: About, parameters: Slerp, finished: GramSurvey | None
) -> GramSurvey | list[float]:
    """Return the two coefficients, which the angle tells."""
    if finished is None:
        return GramSurvey(about.experts)
    finished.describe(about)
    cosine = finished.cosines[0, 1:2]
    both = slerp_coefficients(cosine, parameters.t, least_sine=_LEAST_SINE)
    return [float(c[0]) for c in both]


def coefficients(weights: tuple[float, ...], parameters: Slerp, known: list[float]) -> list[float]:
    """Return the experts' coefficients, of the tensors as they are: what the survey found."""
    return known
