"""Multi-SLERP (Goddard 2025): m/‖m‖·Σ wᵢ‖vᵢ‖, m = Σ wᵢvᵢ/‖vᵢ‖."""

from __future__ import annotations

import math

import numpy as np

from app.contract.catalogue.parameter_space import MultiSlerp
from app.contract.errors import UndefinedMergeError
from worker.merging.combines import Linear
from worker.merging.linalg.sphere import Antipodal, cosines, inverses, mean_direction, norms_of
from worker.merging.method import Steps, Subject, merges
from worker.merging.reductions import InnerProducts


@merges(MultiSlerp)
def multi_slerp(x: Subject, p: MultiSlerp) -> Steps:
    """Return the mean as a combination; UndefinedMergeError where three or more cancel.

    The published algorithm goes on to map the mean of the tangents at m back to the sphere; that
    mean is zero, so m is where it ends.
    """
    gram = yield InnerProducts()
    norms = norms_of(gram)
    shares = np.array(x.weights) / math.fsum(x.weights)
    inverse = inverses(norms)
    if not inverse.any():
        return Linear([0.0] * x.experts)
    try:
        direction = mean_direction(cosines(gram), np.where(norms > 0.0, shares, 0.0))
    except Antipodal:
        if x.experts == 2:
            return Linear(shares.tolist())
        raise UndefinedMergeError(
            f"{x.name}: the checkpoints' directions cancel, so their average has none. Change "
            "the weights, or use a rule to give this tensor another method."
        ) from None
    return Linear((direction * inverse * (shares * norms).sum()).tolist())
