"""DARE (Yu et al. 2024): task arithmetic of changes kept with probability p and divided by p."""

from __future__ import annotations

import torch

from app.contract.catalogue.task_vector import Dare
from worker.merging.interface import MergeInputs
from worker.merging.linalg.draws import bernoulli
from worker.merging.linalg.sums import weighted_sum


def merge(inputs: MergeInputs, parameters: Dare) -> torch.Tensor:
    """Return Σ wᵢmᵢdᵢ/p, divided by Σ wᵢ where `normalize` is on; mᵢ are drawn by position."""
    drawn = []
    for index, tensor in enumerate(inputs.tensors):
        mask = bernoulli(inputs.seed(index), inputs.start, tensor.numel(), parameters.density)
        drawn.append(tensor * mask.view(tensor.shape).to(tensor.device))
    merged = weighted_sum(torch.stack(drawn), inputs.weights, normalize=parameters.normalize)
    return merged.div_(parameters.density)
