"""DELLA (Deep et al. 2024): the elected mean of changes that MagPrune drops by their rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.contract.catalogue.task_vector import Della
from worker.merging.combines import Elected
from worker.merging.linalg.draws import uniform
from worker.merging.method import Block, Combine, Notes, Reduction, State, Steps, Subject, merges


@merges(Della)
def della(x: Subject, p: Della) -> Steps:
    """Rank the changes of each row, or of a vector; keep each by its rank; elect; average.

    Row by row is what the paper found best, and what mergekit does with matrices.
    """
    ranks = (yield Ranks()) if len(x.shape) < 2 and x.entries else None
    return MagPrune(x, p, ranks)


@dataclass(frozen=True)
class Ranks(Reduction):
    """The ranks of a vector's changes, one row an expert. All magnitudes are in memory for it."""

    def add(self, state: State, block: Block, subject: Subject) -> None:
        """Keep the block's magnitudes."""
        state.setdefault("magnitudes", []).append(block.tensors.abs().flatten(1))

    def join(self, state: State, later: State) -> None:
        """Append the later blocks' magnitudes."""
        state.setdefault("magnitudes", []).extend(later.get("magnitudes", []))

    def finish(self, state: State, subject: Subject) -> torch.Tensor:
        """Return the ranks, (experts, entries)."""
        return ranks_of(torch.cat(state["magnitudes"], 1))


@dataclass(frozen=True)
class MagPrune(Combine):
    """Keeps a change with probability q, divides it by q, and takes the elected mean.

    q = density + epsilon·rank, the rank going from −1 for the smallest change of a row to 1 for
    the largest. Counts `kept` entries.
    """

    subject: Subject
    parameters: Della
    ranks: torch.Tensor | None
    """A vector's. A matrix's rows are whole in their block, and ranked there."""

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the elected mean."""
        pruned = torch.empty(block.tensors.shape)
        for expert, changes in enumerate(block.tensors):
            count = changes.numel()
            if self.ranks is None:
                ranks = ranks_of(changes.abs().flatten(1)).view(changes.shape)
            else:
                ranks = self.ranks[expert, block.start : block.start + count]
            chances = self.parameters.density + self.parameters.epsilon * ranks
            draws = uniform(self.subject.seed(expert), block.start, count).view(changes.shape)
            kept = draws < chances
            notes.count("kept", int(kept.count_nonzero()))
            pruned[expert] = changes * kept / chances
        elected = Elected(self.subject.weights, normalize=self.parameters.normalize)
        return elected(Block(self.subject.weights, pruned, start=block.start), notes)


def ranks_of(magnitudes: torch.Tensor) -> torch.Tensor:
    """Return the rank of each magnitude in its row, evenly spaced from −1 to 1, float64.

    Equal ones rank in the order of their positions. The only one of a row has rank 0.
    """
    last = magnitudes.shape[-1] - 1
    spaced = (2 * torch.arange(last + 1) - last).double() / max(1, last)
    order = magnitudes.argsort(dim=-1, stable=True)
    return torch.empty(order.shape, dtype=torch.float64).scatter_(
        -1, order, spaced.expand_as(order)
    )
