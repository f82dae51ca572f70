"""SCE (Wan et al. 2024): Σ qᵢmᵢdᵢ / Σ qᵢmᵢ over the entries where the experts differ most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from app.contract.catalogue.task_vector import Sce
from worker.merging import native
from worker.merging.combines import Elected
from worker.merging.linalg.ops import flat
from worker.merging.linalg.sphere import Doubles
from worker.merging.method import Block, Combine, Notes, Reduction, State, Steps, Subject, merges
from worker.merging.reductions import Histogram, InnerProducts, Stream, order_statistics


@merges(Sce)
def sce(x: Subject, p: Sce) -> Steps:
    """Select the entries of largest variance, weigh experts by their energy there, erase.

    Entries equal to the smallest variance that is selected are all selected. Without any change
    there, the experts count the same.
    """
    # A single expert varies nowhere: there is nothing to select it away for.
    if p.select_topk == 1.0 or x.experts == 1:
        cut, energies = 0.0, np.diagonal((yield InnerProducts()))
    else:
        counted = yield Histogram(Spread())
        wanted = math.floor(p.select_topk * counted.nonzero)
        cut = math.inf
        if wanted:
            ((cut,),) = yield from order_statistics(counted, [wanted - 1])
        energies, x.notes.diagnostics["selected"] = yield Energies(cut)
    total = energies.sum()
    shares = energies / total if total > 0.0 else np.full(x.experts, 1.0 / x.experts)
    x.notes.diagnostics["coefficients"] = shares.tolist()
    return Erased(shares.tolist(), cut)


@dataclass(frozen=True)
class Spread(Stream):
    """The population standard deviation over the experts, which ranks as variance does."""

    magnitudes = True
    counts_nonzero = True

    def __call__(self, block: Block) -> Sequence[torch.Tensor]:
        """Return the block's; exactly 0 where all experts are equal."""
        tensors = flat(block.tensors)
        result = torch.empty(tensors.shape[1])
        native.spread(tensors, result)
        return [result]


@dataclass(frozen=True)
class Energies(Reduction):
    """Each expert's Σ dᵢ² over the entries whose spread is at least the cut, and their number."""

    cut: float

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Add the block's."""
        (spread,) = Spread()(block)
        energies = torch.zeros(subject.experts, dtype=torch.float64)
        native.add_energies(flat(block.tensors), spread, self.cut, energies)
        selected = np.array(int((spread >= self.cut).sum()))
        self.join(state, {"energies": energies.numpy(), "selected": selected})

    def finish(self, state: State, subject: Subject) -> tuple[Doubles, int]:
        """Return one energy an expert, float64, and the number of entries."""
        return state["energies"], int(state["selected"])


class Erased(Combine):
    """The mean, weighted by q, of the selected changes that have the majority's sign."""

    def __init__(self, shares: Sequence[float], cut: float) -> None:
        self._elected = Elected(shares, weighted_votes=False)
        self._cut = cut

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the mean; 0 where the spread is under the cut."""
        merged = self._elected(block, notes)
        if self._cut > 0.0:
            native.clear_below(merged.view(-1), Spread()(block)[0], self._cut)
        return merged
