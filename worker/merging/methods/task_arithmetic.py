"""Task arithmetic (Ilharco et al. 2023): W₀ + λ Σ wᵢdᵢ."""

from __future__ import annotations

from app.contract.catalogue.task_vector import TaskArithmetic
from worker.merging.combines import Linear, shares
from worker.merging.method import Subject, merges


@merges(TaskArithmetic)
def task_arithmetic(x: Subject, p: TaskArithmetic) -> Linear:
    """Return Σ wᵢdᵢ, divided by Σ wᵢ if `normalize` is on."""
    return Linear(shares(x.weights, normalize=p.normalize))
