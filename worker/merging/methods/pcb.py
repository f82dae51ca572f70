"""PCB-Merging (Du et al. 2024): Σ sign(dᵢ)Aᵢ·scaleᵢ / Σ scaleᵢ, scales from competition scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from app.contract.catalogue.task_vector import Pcb
from worker.merging.interface import About, MergeInputs, Survey
from worker.merging.linalg.competition import competition_mean, competition_scores
from worker.merging.linalg.quantiles import Bracket, Tails
from worker.merging.ranks import HistogramSurvey, RankSurvey

_CLIPPED = 1e-4
_LINEAR = 2.0**-13
"""Up to here tanh x is x, to float32 rounding; most task vectors' products are far smaller."""
_SAMPLE = 2**15
"""Entries by whose scores it is foretold where the bound of all scores lies."""


@dataclass(frozen=True)
class Scores:
    """The competition scores βᵢ, given the sizes between which an expert's changes are clipped.

    `small` says that tanh of any product is the product itself.
    """

    clips: tuple[tuple[float, float], ...]
    small: bool

    def __call__(self, inputs: MergeInputs) -> list[torch.Tensor]:
        """Return a block's scores, flat; 0 where all of an expert's sizes are equal."""
        return self.of(inputs.tensors)

    def of(self, tensors: torch.Tensor) -> list[torch.Tensor]:
        """Return the scores of some entries of all experts."""
        return list(competition_scores(tensors, self.clips, linear=self.small))


class SizeSurvey(Survey):
    """The sizes between which changes are clipped, and the changes of a sample of entries."""

    def __init__(self, about: About) -> None:
        self.entries = math.prod(about.shape)
        low = math.floor(self.entries * _CLIPPED)
        high = max(0, math.floor(self.entries * (1.0 - _CLIPPED)) - 1)
        self._tails = [Tails(low + 1, self.entries - high) for _ in about.weights]
        self._stride = _stride(self.entries // _SAMPLE)
        self._sample: list[torch.Tensor] = []

    @property
    def question(self) -> Hashable:
        """The same for all parameters."""
        return type(self)

    def add(self, inputs: MergeInputs) -> None:
        """Take in a block."""
        flat = inputs.tensors.flatten(1)
        for tails, values in zip(self._tails, flat, strict=True):
            tails.add(values)
        self._sample.append(flat[:, -inputs.start % self._stride :: self._stride].clone())

    def join(self, later: Self) -> None:
        """Take in later blocks."""
        for tails, others in zip(self._tails, later._tails, strict=True):
            tails.join(others)
        self._sample += later._sample

    @property
    def scores(self) -> Scores:
        """The scores that follow."""
        largest = [tails.greatest for tails in self._tails]
        small = max(largest) * math.fsum(largest) <= _LINEAR
        return Scores(tuple(tails.quantiles for tails in self._tails), small)

    @property
    def sample(self) -> torch.Tensor:
        """The changes of all experts at some entries: (experts, m)."""
        return torch.cat(self._sample, 1)


class ScoreSurvey(Survey):
    """Each expert's score at a rank, and its largest."""

    def __init__(self, scores: Scores, brackets: Sequence[Bracket]) -> None:
        self.scores, self._brackets = scores, brackets
        self._question = (type(self), scores, tuple((b.low, b.high, b.rank) for b in brackets))

    @property
    def question(self) -> Hashable:
        """Which scores, and at which rank."""
        return self._question

    def add(self, inputs: MergeInputs) -> None:
        """Take in a block."""
        for bracket, values in zip(self._brackets, self.scores(inputs), strict=True):
            bracket.add(values)

    def join(self, later: Self) -> None:
        """Take in later blocks."""
        for bracket, others in zip(self._brackets, later._brackets, strict=True):
            bracket.join(others)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...] | None:
        """The score at the rank and the largest, one pair an expert; None if a bracket missed."""
        found = tuple((bracket.value, bracket.greatest) for bracket in self._brackets)
        if any(least is None for least, _ in found):
            return None
        return tuple((least, most) for least, most in found if least is not None)


@dataclass(frozen=True)
class Known:
    """How to score, and each expert's score from which changes count, and largest score."""

    scores: Scores
    bounds: tuple[tuple[float, float], ...]


def _stride(least: int) -> int:
    """Return a number that has no factor in common with a matrix's width, as widths are.

    So that the sample takes as much from each row and column as from any other.
    """
    stride = max(1, least)
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    return stride


Finished = SizeSurvey | ScoreSurvey | HistogramSurvey | RankSurvey


def survey(about: About, parameters: Pcb, finished: Finished | None) -> Survey | Known:
    """Return quantiles: first those of the sizes, then those of the scores that follow.

    Where the sample foretold the scores' bound wrongly, they are ranked by a histogram.
    """
    entries = math.prod(about.shape)
    if entries == 0:
        nothing = ((0.0, 0.0),) * about.experts
        return Known(Scores(nothing, True), nothing)
    if finished is None:
        return SizeSurvey(about)
    rank = entries - 1 - min(entries - 1, math.floor(entries * (1.0 - parameters.ratio)))
    if isinstance(finished, SizeSurvey):
        scores = finished.scores
        about.diagnostics["clipped_to"] = [list(pair) for pair in scores.clips]
        sample = scores.of(finished.sample)
        return ScoreSurvey(scores, [Bracket.around(s, rank, entries) for s in sample])
    if isinstance(finished, ScoreSurvey):
        bounds = finished.bounds
        if bounds is not None:
            return Known(finished.scores, bounds)
        return HistogramSurvey(about.experts, finished.scores, signed=True)
    if isinstance(finished, HistogramSurvey):
        return finished.find([rank, 0])
    assert isinstance(finished.ranked, Scores)
    found = tuple((least.value, most.value) for least, most in finished.boundaries)
    return Known(finished.ranked, found)


def merge(inputs: MergeInputs, parameters: Pcb, known: Known) -> torch.Tensor:
    """Return the mean of the clipped changes, weighed by how far their scores pass the bound."""
    scores = known.scores
    return competition_mean(inputs.tensors, scores.clips, known.bounds, linear=scores.small)
