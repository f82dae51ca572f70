"""Model soup (Wortsman et al. 2022): Σ wᵢWᵢ / Σ wᵢ."""

from __future__ import annotations

import torch

from app.contract.catalogue.parameter_space import Soup
from worker.merging.interface import MergeInputs
from worker.merging.linalg.sums import weighted_sum


def merge(inputs: MergeInputs, parameters: Soup) -> torch.Tensor:
    """Return the weighted average of the weights, or their sum where `normalize` is off."""
    return weighted_sum(inputs.tensors, inputs.weights, normalize=parameters.normalize)
