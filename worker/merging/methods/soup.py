"""Model soup (Wortsman et al. 2022): Σ wᵢWᵢ / Σ wᵢ."""

from __future__ import annotations

from app.contract.catalogue.parameter_space import Soup
from worker.merging.combines import Linear, shares
from worker.merging.method import Subject, merges


@merges(Soup)
def soup(x: Subject, p: Soup) -> Linear:
    """Return the weighted mean; the weighted sum if `normalize` is off."""
    return Linear(shares(x.weights, normalize=p.normalize))
