"""Model soup (Wortsman et al. 2022): Σ wᵢWᵢ / Σ wᵢ."""

from __future__ import annotations

from collections.abc import Sequence

from app.contract.catalogue.parameter_space import Soup
from worker.merging.linalg.sums import shares


def coefficients(weights: tuple[float, ...], parameters: Soup) -> Sequence[float]:
    """Return wᵢ / Σ wᵢ, or wᵢ where `normalize` is off."""
    return shares(weights, normalize=parameters.normalize)
