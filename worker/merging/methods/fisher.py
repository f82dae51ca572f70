"""Fisher merging (Matena & Raffel 2022): Σ wᵢFᵢWᵢ / Σ wᵢFᵢ, entry by entry."""

from __future__ import annotations

import torch

from app.contract.catalogue.calibrated import Fisher
from worker.merging.combines import Entrywise, Linear, shares
from worker.merging.method import Block, Combine, Subject, merges


@merges(Fisher)
def fisher(x: Subject, p: Fisher) -> Combine:
    """Weigh each entry by its Fisher information; what was not trained gets the mean."""
    statistics = x.statistics
    if statistics is None:
        return Linear(shares(x.weights, normalize=True))
    norms = statistics.norms if p.normalize else [1.0] * x.experts
    weights = torch.tensor([w / n for w, n in zip(x.weights, norms, strict=True)]).double()
    x.notes.diagnostics["experts"] = [{"fisher_norm": norm} for norm in statistics.norms]

    def merged(block: Block) -> torch.Tensor:
        models = block.tensors.flatten(1)
        found = statistics.read(block.start, block.start + models.shape[1])
        information = found.double().clamp_(min=p.floor).mul_(weights[:, None])
        # Differences, so that equal entries come out as they are.
        moved = ((models - models[0]) * information).sum(0) / information.sum(0)
        return (models[0] + moved).float().view(block.tensors.shape[1:])

    return Entrywise(merged)
