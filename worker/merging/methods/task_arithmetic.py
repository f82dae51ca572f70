"""Task arithmetic (Ilharco et al. 2023): W₀ + λ Σ wᵢdᵢ."""

from __future__ import annotations

import torch

from app.contract.catalogue.task_vector import TaskArithmetic
from worker.merging.interface import MergeInputs
from worker.merging.linalg.sums import weighted_sum


def merge(inputs: MergeInputs, parameters: TaskArithmetic) -> torch.Tensor:
    """Return Σ wᵢdᵢ, divided by Σ wᵢ where `normalize` is on."""
    return weighted_sum(inputs.tensors, inputs.weights, normalize=parameters.normalize)
