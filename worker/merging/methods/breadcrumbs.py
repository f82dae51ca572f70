"""Model Breadcrumbs (Davari 2023): task arithmetic without the largest and smallest changes."""

from __future__ import annotations

import math

from app.contract.catalogue.task_vector import Breadcrumbs
from worker.merging.combines import Banded, Linear, shares
from worker.merging.method import Steps, Subject, merges
from worker.merging.reductions import magnitude_cuts


@merges(Breadcrumbs)
def breadcrumbs(x: Subject, p: Breadcrumbs) -> Steps:
    """Leave out each expert's ⌊gamma·n⌋ largest changes, keep the ⌊density·n⌋ next ones.

    Changes equal to the largest or the smallest that is kept are all kept.
    """
    factors = shares(x.weights, normalize=p.normalize)
    if p.density == 1.0 and p.gamma == 0.0:
        return Linear(factors)
    dropped = math.floor(p.gamma * x.entries)
    kept = min(math.floor(p.density * x.entries), x.entries - dropped)
    if kept == 0:
        return Linear([0.0] * x.experts)
    cuts = yield from magnitude_cuts([dropped, dropped + kept - 1])
    bands = [(least, largest if dropped else math.inf) for largest, least in cuts]
    x.notes.diagnostics["bands"] = [
        [largest if dropped else None, least] for largest, least in cuts
    ]
    return Banded(factors, bands)
