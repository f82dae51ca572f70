"""RAM (Yuan et al. 2026): each entry's mean over the experts that changed it."""

from __future__ import annotations

import torch

from app.contract.catalogue.task_vector import Ram
from worker.merging.combines import Entrywise
from worker.merging.method import Block, Subject, merges


@merges(Ram)
def ram(x: Subject, p: Ram) -> Entrywise:
    """Keep what one expert alone changed, and average what several did."""

    def merged(block: Block) -> torch.Tensor:
        changed = block.tensors.abs() > p.epsilon
        total = (block.tensors * changed).sum(0)
        return total / changed.sum(0).clamp(min=1)

    return Entrywise(merged)
