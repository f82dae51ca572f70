"""Task arithmetic (Ilharco et al. 2023): W₀ + λ Σ wᵢdᵢ."""

from __future__ import annotations

from collections.abc import Sequence

from app.contract.catalogue.task_vector import TaskArithmetic
from worker.merging.linalg.sums import shares


def coefficients(weights: tuple[float, ...], parameters: TaskArithmetic) -> Sequence[float]:
    """Return wᵢ, divided by Σ wᵢ where `normalize` is on."""
    return shares(weights, normalize=parameters.normalize)
