"""The two surveys that find ranks exactly: a histogram of all, then what may be at a rank."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Self

import torch

from worker.merging.interface import MergeInputs, Survey
from worker.merging.linalg.order_statistics import (
    Boundary,
    Candidates,
    Histogram,
    Place,
)

Ranked = Callable[[MergeInputs], Sequence[torch.Tensor]]
"""A block's inputs -> numbers to rank, flat, one tensor a stream."""


def each_expert(inputs: MergeInputs) -> list[torch.Tensor]:
    """Return one stream an expert, of its entries."""
    return [tensor.reshape(-1) for tensor in inputs.tensors]


class HistogramSurvey(Survey):
    """Counts numbers by bucket: by their sizes, or with `signed` as they are."""

    def __init__(self, streams: int, ranked: Ranked = each_expert, *, signed: bool = False) -> None:
        self.ranked = ranked
        self.histogram = Histogram(streams, signed=signed)
        self._signed = signed

    @property
    def question(self) -> Hashable:
        """Which numbers are counted."""
        return type(self), len(self.histogram.counts), self.ranked, self._signed

    def add(self, inputs: MergeInputs) -> None:
        """Count a block's."""
        for stream, values in enumerate(self.ranked(inputs)):
            self.histogram.add(stream, values)

    def join(self, later: Self) -> None:
        """Count those of later blocks."""
        self.histogram.join(later.histogram)

    def find(self, ranks: Sequence[int]) -> RankSurvey:
        """Return the survey that finds the numbers at these descending ranks, of every stream."""
        streams = range(len(self.histogram.counts))
        return RankSurvey(
            [self.histogram.find(s, ranks) for s in streams], self.ranked, self.histogram
        )


class RankSurvey(Survey):
    """Finds the numbers at given ranks."""

    def __init__(
        self, places: Sequence[Sequence[Place]], ranked: Ranked, histogram: Histogram
    ) -> None:
        self.ranked, self.histogram = ranked, histogram
        self.candidates = Candidates(places, histogram.signed)

    @property
    def question(self) -> Hashable:
        """Which numbers are looked for, and where."""
        return type(self), self.ranked, tuple(map(tuple, self.candidates.places))

    def add(self, inputs: MergeInputs) -> None:
        """Keep a block's candidates."""
        for stream, values in enumerate(self.ranked(inputs)):
            self.candidates.add(stream, values, inputs.start)

    def join(self, later: Self) -> None:
        """Take over those of later blocks."""
        self.candidates.join(later.candidates)

    @property
    def boundaries(self) -> list[list[Boundary]]:
        """What is at the ranks, stream by stream."""
        return [self.candidates.boundaries(s) for s in range(len(self.candidates.places))]
