"""The two surveys that find ranks exactly: a histogram of all keys, then what may be at a rank."""

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
    magnitude_keys,
)

Keys = Callable[[MergeInputs], Sequence[torch.Tensor]]
"""A block's inputs -> integers to rank, flat, one tensor a stream."""


def magnitudes(inputs: MergeInputs) -> list[torch.Tensor]:
    """Return one stream an expert, in the order of the sizes of its entries."""
    return [magnitude_keys(tensor.reshape(-1)) for tensor in inputs.tensors]


class HistogramSurvey(Survey):
    """Counts keys by bucket."""

    def __init__(self, streams: int, keys: Keys = magnitudes, *, signed: bool = False) -> None:
        self.keys = keys
        self.histogram = Histogram(streams, signed=signed)
        self._signed = signed

    @property
    def question(self) -> Hashable:
        """Which keys are counted."""
        return type(self), len(self.histogram.counts), self.keys, self._signed

    def add(self, inputs: MergeInputs) -> None:
        """Count a block's."""
        for stream, keys in enumerate(self.keys(inputs)):
            self.histogram.add(stream, keys)

    def join(self, later: Self) -> None:
        """Count those of later blocks."""
        self.histogram.join(later.histogram)

    def find(self, ranks: Sequence[int]) -> RankSurvey:
        """Return the survey that finds the keys at these descending ranks, of every stream."""
        streams = range(len(self.histogram.counts))
        return RankSurvey(
            [self.histogram.find(s, ranks) for s in streams], self.keys, self.histogram
        )


class RankSurvey(Survey):
    """Finds the keys at given ranks."""

    def __init__(self, places: Sequence[Sequence[Place]], keys: Keys, histogram: Histogram) -> None:
        self.keys, self.histogram = keys, histogram
        self.candidates = Candidates(places)

    @property
    def question(self) -> Hashable:
        """Which keys are looked for, and where."""
        return type(self), self.keys, tuple(map(tuple, self.candidates.places))

    def add(self, inputs: MergeInputs) -> None:
        """Keep a block's candidates."""
        for stream, keys in enumerate(self.keys(inputs)):
            self.candidates.add(stream, keys, inputs.start)

    def join(self, later: Self) -> None:
        """Take over those of later blocks."""
        self.candidates.join(later.candidates)

    @property
    def boundaries(self) -> list[list[Boundary]]:
        """What is at the ranks, stream by stream."""
        return [self.candidates.boundaries(s) for s in range(len(self.candidates.places))]
