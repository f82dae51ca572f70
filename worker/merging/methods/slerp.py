"""SLERP (Shoemake 1985): sin((1−t)θ)/sin θ·W₀ + sin(tθ)/sin θ·W₁."""

from __future__ import annotations

import math

from app.contract.catalogue.parameter_space import Slerp
from worker.merging.combines import Linear
from worker.merging.linalg.sphere import cosines, slerp_coefficients
from worker.merging.method import Steps, Subject, merges
from worker.merging.reductions import InnerProducts

_LEAST_SINE = math.sqrt(1.0 - 0.9995**2)
"""Of directions closer than this (or as far from opposite) the straight line is taken."""


@merges(Slerp)
def slerp(x: Subject, p: Slerp) -> Steps:
    """Combine the two tensors as they are, by the angle between them."""
    gram = yield InnerProducts()
    both = slerp_coefficients(cosines(gram)[0, 1:2], p.t, least_sine=_LEAST_SINE)
    return Linear([float(c[0]) for c in both])
