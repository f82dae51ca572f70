"""TIES (Yadav et al. 2023): W₀ + λ · the mean of the trimmed dᵢ that have the elected sign."""

from __future__ import annotations

import math

from app.contract.catalogue.task_vector import Ties
from worker.merging.combines import Elected
from worker.merging.method import Steps, Subject, merges
from worker.merging.reductions import magnitude_cuts


@merges(Ties)
def ties(x: Subject, p: Ties) -> Steps:
    """Trim each expert to its k largest changes, k = max(1, ⌊density·n⌋); elect; average.

    Changes equal to the k-th largest are all kept.
    """
    if p.density == 1.0:
        return Elected(x.weights, normalize=p.normalize)
    kept = max(1, math.floor(p.density * x.entries))
    cuts = [cut for (cut,) in (yield from magnitude_cuts([kept - 1]))]
    x.notes.diagnostics.update(kept_of_each=kept, thresholds=cuts)
    return Elected(x.weights, cuts, normalize=p.normalize)
