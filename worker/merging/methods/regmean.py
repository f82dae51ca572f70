"""RegMean (Jin et al. 2023): the W that minimises Σ wᵢ‖(W − Wᵢ)Xᵢ‖² for each linear layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import torch

from app.contract.catalogue.calibrated import RegMean
from worker.merging.combines import Linear, shares
from worker.merging.method import Block, Combine, Notes, Statistics, Subject, merges

# Grams are stored as float32, whose rounding looks like eigenvalues of up to 2⁻²⁴ of the trace.
# This much is added to all: in directions below it the mean decides rather than the rounding.
_RESOLUTION = 2.0**-20


@merges(RegMean)
def regmean(x: Subject, p: RegMean) -> Combine:
    """Solve each row's regression; tensors that are no linear layer's get the mean."""
    mean = shares(x.weights, normalize=True)
    x.notes.diagnostics["regression"] = x.statistics is not None
    if x.statistics is None:
        return Linear(mean)
    return Regression(x.statistics, x.shape[-1], mean, p.alpha)


@dataclass(eq=False)
class Regression(Combine):
    """W̄ + (Σ wᵢ(Wᵢ − W̄)Gᵢ)(Σ wᵢGᵢ)⁻¹, row by row, where Gᵢ = XᵢXᵢᵀ and W̄ is the mean.

    In directions that no input has, this is the mean. The off-diagonal of each Gᵢ is times α.
    """

    statistics: Statistics
    inputs: int
    weights: list[float]
    alpha: float
    _lock: Lock = field(default_factory=Lock)

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the rows that are nearest to all checkpoints' on their own inputs."""
        # The engine's threads may merge parts of one tensor: they share what is solved.
        with self._lock:
            grams, factor = self._solved
        models = block.tensors.double()
        weights = torch.tensor(self.weights).double()
        mean: torch.Tensor = torch.tensordot(weights, models, 1)
        total = torch.zeros_like(mean)
        for model, gram in zip(models, grams, strict=True):
            total.addmm_(model - mean, gram.double())
        moved: torch.Tensor = torch.cholesky_solve(total.mT, factor).mT
        return (mean + moved).float().contiguous()

    @cached_property
    def _solved(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted Grams, float32, and the Cholesky factor of their sum."""
        size = self.inputs
        grams = self.statistics.read(0, size * size).view(-1, size, size)
        diagonals = grams.diagonal(dim1=1, dim2=2).clone()
        grams *= self.alpha
        grams.diagonal(dim1=1, dim2=2).copy_(diagonals)
        for gram, weight in zip(grams, self.weights, strict=True):
            gram *= weight
        total = grams.sum(0, dtype=torch.float64)
        least = float(total.diagonal().sum()) * _RESOLUTION or 1.0
        total.diagonal().add_(least)
        return grams, torch.linalg.cholesky(total)
