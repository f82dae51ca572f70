"""A system's scored result on one dataset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from app.contract.evaluation import EvaluatedDataset, NormalizerName, SkippedUtterance
from app.reports.alignments import Metric
from app.reports.averages import DatasetRate
from app.reports.confidence import Counts, Floats, Sampling, describe, rates, sampling
from app.reports.normalizers import Normalizer, find_normalizer
from app.reports.scoring import (
    HIGHEST_COMPRESSION_RATIO,
    UtteranceScore,
    metric_for,
    score,
    total,
)

# Utterances with longer texts, before or after normalisation, are skipped.
MOST_CHARACTERS = 100_000
# Bound on a character's growth by normalisation: a ligature becomes 18 letters.
_GROWTH = 20


@dataclass(frozen=True)
class ScoredDataset:
    """A system's result on one dataset with its scores, in the utterances' order."""

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
        """The units that the bootstrap resamples."""
        return sampling(self.evaluated.name, self.evaluated.result.utterances)

    @cached_property
    def replicates(self) -> Floats | None:
        """The error rate of each bootstrap replicate; None if there is nothing to resample."""
        return rates(self.sampling, self.errors, self.lengths)

    @property
    def interval(self) -> dict[str, Any] | None:
        """The rate's confidence interval and its parameters, or None."""
        return describe(self.replicates, self.sampling.unit, self.sampling.units)

    @cached_property
    def loops(self) -> int:
        """The number of transcripts that repeat themselves, by Whisper's criterion."""
        return sum(one.compression_ratio > HIGHEST_COMPRESSION_RATIO for one in self.scores)

    @property
    def hallucinations(self) -> dict[str, Any]:
        """Insertions in silent utterances (in the metric's units), and loops."""
        silent = [one for one in self.scores if not one.reference]
        return {
            "silent_utterances": len(silent),
            "words_on_silence": sum(one.counts(self.metric).insertions for one in silent),
            "loops": self.loops,
            "loop_rate": self.loops / len(self.scores) if self.scores else None,
        }

    @property
    def audio_seconds(self) -> float:
        """The length of the audio that was decoded."""
        return sum(one.audio_seconds for one in self.evaluated.result.utterances)

    @property
    def decode_seconds(self) -> float:
        """How long decoding took, without loading the checkpoint and reading the audio."""
        return sum(one.decode_seconds for one in self.evaluated.result.utterances)

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
            audio_seconds=self.audio_seconds,
            decode_seconds=self.decode_seconds,
        )


def score_dataset(
    evaluated: EvaluatedDataset, normalizer: NormalizerName | None = None
) -> ScoredDataset:
    """Return the dataset's scores under its own normaliser, or the one given."""
    language = evaluated.result.language
    chosen = find_normalizer(normalizer or evaluated.normalizer, language)
    metric = metric_for(language)
    evaluated = _without_endless(evaluated, chosen)
    scores = score(evaluated.result.utterances, chosen, metric=metric)
    return ScoredDataset(evaluated, chosen, metric, scores)


def _without_endless(evaluated: EvaluatedDataset, normalizer: Normalizer) -> EvaluatedDataset:
    """Return the result, utterances with a text too long to be aligned among the skipped.

    Aligning takes quadratic time: at the limit, which two hours of speech reach, half a second.
    """
    kept, skipped = [], list(evaluated.result.skipped)
    for utterance in evaluated.result.utterances:
        endless = [
            side
            for side in ("reference", "hypothesis")
            if _is_endless(getattr(utterance, side), normalizer)
        ]
        if endless:
            reason = f"its {endless[0]} has over {MOST_CHARACTERS} characters to compare"
            skipped.append(
                SkippedUtterance(index=utterance.index, audio=utterance.audio, reason=reason)
            )
        else:
            kept.append(utterance)
    if len(kept) == len(evaluated.result.utterances):
        return evaluated
    update = {"utterances": tuple(kept), "skipped": tuple(skipped)}
    result = evaluated.result.model_copy(update=update)
    return evaluated.model_copy(update={"result": result})


def _is_endless(text: str, normalizer: Normalizer) -> bool:
    if len(text) * _GROWTH <= MOST_CHARACTERS:
        return False
    return len(text) > MOST_CHARACTERS or len(normalizer(text)) > MOST_CHARACTERS
