"""The combines that methods share: from a block's inputs to the merged block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from worker.merging import native
from worker.merging.linalg.directions import Directions
from worker.merging.linalg.ops import apply, flat, weighted_sum
from worker.merging.method import Block, Combine, Notes

Band = tuple[float, float]
"""A least and a largest magnitude, or score."""


def shares(weights: Sequence[float], *, normalize: bool) -> list[float]:
    """Return the weights, or wᵢ / Σ wᵢ; ZeroDivisionError where that sum is 0."""
    total = math.fsum(weights) if normalize else 1.0
    return [weight / total for weight in weights]


@dataclass(frozen=True)
class Linear(Combine):
    """Σ cᵢxᵢ. The engine combines it while it reads, without a block in memory."""

    coefficients: Sequence[float]

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the sum."""
        return weighted_sum(block.tensors, self.coefficients)


@dataclass(frozen=True)
class Entrywise(Combine):
    """Any function of the block, in torch."""

    function: Callable[[Block], torch.Tensor]

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return what the function makes of the block."""
        return self.function(block)


@dataclass(frozen=True)
class Elected(Combine):
    """Σ wᵢxᵢ over the i whose wᵢxᵢ has the elected sign (TIES).

    Entries under an expert's cut are 0 first. Elected is the sign of Σ wᵢxᵢ (of Σ xᵢ without
    `weighted_votes`), a zero counting as +. With `normalize` the sum is divided by Σ wᵢ over the
    same i; where that is 0 the result is 0. Counts `agreeing` and `kept` entries.
    """

    weights: Sequence[float]
    cuts: Sequence[float] | None = None
    normalize: bool = True
    weighted_votes: bool = True

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the elected sum."""
        result = torch.empty(block.tensors.shape[1:])
        agreeing, kept = native.elected_sum(
            flat(block.tensors),
            self.weights,
            self.cuts or [0.0] * len(self.weights),
            result.view(-1),
            weighted_votes=self.weighted_votes,
            normalize=self.normalize,
        )
        notes.count("agreeing", agreeing)
        if self.cuts:
            notes.count("kept", kept)
        return result


@dataclass(frozen=True)
class Banded(Combine):
    """Σ cᵢxᵢ over the entries whose magnitude is within each expert's band. Counts `kept`."""

    coefficients: Sequence[float]
    bands: Sequence[Band]

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the sum."""
        result = torch.empty(block.tensors.shape[1:])
        tensors = flat(block.tensors)
        kept = native.banded_sum(tensors, self.coefficients, self.bands, result.view(-1))
        notes.count("kept", kept)
        return result


@dataclass(frozen=True)
class OfSum(Combine):
    """S·F, row by row, S = Σ wᵢxᵢ. Of it no expert needs to be in memory."""

    factor: torch.Tensor

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the rows of the product."""
        return apply(block.sum, self.factor)


@dataclass(frozen=True)
class OfDirections(Combine):
    """Û·W, row by row; zeros where there are no directions."""

    directions: Directions
    factor: torch.Tensor

    def __call__(self, block: Block, notes: Notes) -> torch.Tensor:
        """Return the rows of the product."""
        return apply(left_rows(self.directions, block), self.factor)


def left_rows(directions: Directions, block: Block) -> torch.Tensor:
    """Return the block's rows of Û, float32."""
    return block.once(
        directions,
        lambda: directions.left(block.tensors, block.sum if directions.needs_sum else None),
    )
