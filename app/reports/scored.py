"""A system's result on one dataset, scored: what every report is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from app.contract.evaluation import EvaluatedDataset, NormalizerName
from app.reports.alignments import Metric
from app.reports.averages import DatasetRate
from app.reports.confidence import Counts, Floats, Sampling, describe, rates, sampling
from app.reports.normalizers import Normalizer, find_normalizer
from app.reports.scoring import UtteranceScore, metric_for, score, total


@dataclass(frozen=True)
class ScoredDataset:
    """A system's result on one dataset, scored; `scores` are in the utterances' order."""

    evaluated: EvaluatedDataset
    normalizer: Normalizer
    metric: Metric
    scores: tuple[UtteranceScore, ...]

    @cached_property
    def errors(self) -> Counts:
        """Errors of each utterance, in the metric's units."""
        return np.array([one.counts(self.metric).errors for one in self.scores], dtype=np.int64)

    @cached_property
    def lengths(self) -> Counts:
        """Reference units of each utterance."""
        lengths = [one.counts(self.metric).reference_units for one in self.scores]
        return np.array(lengths, dtype=np.int64)

    @cached_property
    def sampling(self) -> Sampling:
        """What the bootstrap draws."""
        return sampling(self.evaluated.name, self.evaluated.result.utterances)

    @cached_property
    def replicates(self) -> Floats | None:
        """The error rate of each replicate of the bootstrap; None if there is nothing to draw."""
        return rates(self.sampling, self.errors, self.lengths)

    @property
    def interval(self) -> dict[str, Any] | None:
        """The rate's confidence interval and how it was made, or None."""
        return describe(self.replicates, self.sampling.unit, self.sampling.units)

    @property
    def rate(self) -> DatasetRate:
        """What the averages need."""
        return DatasetRate(
            name=self.evaluated.name,
            group=self.evaluated.group,
            metric=self.metric,
            counts=total(score.counts(self.metric) for score in self.scores),
            replicates=self.replicates,
            unit=self.sampling.unit,
        )


def score_dataset(
    evaluated: EvaluatedDataset, normalizer: NormalizerName | None = None
) -> ScoredDataset:
    """Return the dataset's scores under its own normaliser, or the one given."""
    chosen = find_normalizer(normalizer or evaluated.normalizer)
    metric = metric_for(evaluated.result.language)
    scores = score(evaluated.result.utterances, chosen, metric=metric)
    return ScoredDataset(evaluated, chosen, metric, scores)
