"""DARE (Yu et al. 2024): task arithmetic of changes kept with probability p and divided by p."""

from __future__ import annotations

import torch

from app.contract.catalogue.task_vector import Dare
from worker.merging.combines import Entrywise, shares
from worker.merging.linalg.draws import bernoulli
from worker.merging.linalg.ops import weighted_sum
from worker.merging.method import Block, Subject, merges


@merges(Dare)
def dare(x: Subject, p: Dare) -> Entrywise:
    """Return Σ wᵢmᵢdᵢ/p, divided by Σ wᵢ if `normalize` is on; mᵢ are drawn by position."""
    factors = [share / p.density for share in shares(x.weights, normalize=p.normalize)]

    def drop_and_rescale(block: Block) -> torch.Tensor:
        kept = [
            changes * bernoulli(x.seed(expert), block.start, changes.numel(), p.density)
            for expert, changes in enumerate(block.tensors.flatten(1))
        ]
        return weighted_sum(torch.stack(kept), factors).view(block.tensors.shape[1:])

    return Entrywise(drop_and_rescale)
