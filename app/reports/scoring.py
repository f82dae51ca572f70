"""Counts the errors of hypotheses against references."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.contract.evaluation import ErrorCounts, UtteranceResult
from app.reports.alignments import (
    Alignment,
    Metric,
    align_characters,
    align_words,
    count_characters,
    count_errors,
)
from app.reports.compounds import align_compounds
from app.reports.normalizers import Normalizer

# Languages written without spaces between words (by Whisper's codes): words cannot be counted.
UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue", "km"})
# Whisper's own sign of a transcript that repeats itself.
HIGHEST_COMPRESSION_RATIO = 2.4


@dataclass(frozen=True)
class UtteranceScore:
    """An utterance's normalised texts, counts and alignment (in the metric's units)."""

    index: int
    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts
    alignment: Alignment
    compression_ratio: float

    def counts(self, metric: Metric) -> ErrorCounts:
        """Return the counts in the metric's units."""
        return self.words if metric == "wer" else self.characters


def metric_for(language: str | None) -> Metric:
    """Return `cer` for a language written without spaces, else `wer`."""
    return "cer" if language in UNSPACED_LANGUAGES else "wer"


def score(
    utterances: Sequence[UtteranceResult], normalizer: Normalizer, *, metric: Metric = "wer"
) -> tuple[UtteranceScore, ...]:
    """Return one score for each utterance, in order.

    Characters are Unicode code points, including single spaces between words, as jiwer counts them;
    if the metric is `cer`, spaces are ignored.
    """
    references = [normalizer(utterance.reference) for utterance in utterances]
    hypotheses = [normalizer(utterance.hypothesis) for utterance in utterances]
    if normalizer.joins_compounds:
        pairs = zip(references, hypotheses, strict=True)
        words = [align_compounds(spoken.split(), heard.split()) for spoken, heard in pairs]
    else:
        words = align_words(references, hypotheses)
    spoken, heard = references, hypotheses
    if metric == "cer":
        spoken, heard = _joined(references), _joined(hypotheses)
    alignments = words if metric == "wer" else align_characters(spoken, heard)
    return tuple(
        UtteranceScore(
            index=utterance.index,
            reference=references[position],
            hypothesis=hypotheses[position],
            words=count_errors(words[position]),
            characters=count_characters(spoken[position], heard[position]),
            alignment=alignments[position],
            compression_ratio=compression_ratio(utterance.hypothesis),
        )
        for position, utterance in enumerate(utterances)
    )


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Return the sum of the counts."""
    return sum(counts, ErrorCounts())


def sentence_error_rate(scores: Sequence[UtteranceScore], metric: Metric) -> float | None:
    """Return the fraction of utterances with an error; None if there are no utterances."""
    if not scores:
        return None
    return sum(score.counts(metric).errors > 0 for score in scores) / len(scores)


def compression_ratio(text: str) -> float:
    """Return the size of the UTF-8 text over its size after zlib, as Whisper does; 0 if empty."""
    content = text.encode()
    return len(content) / len(zlib.compress(content)) if content else 0.0


def _joined(texts: Sequence[str]) -> list[str]:
    return ["".join(text.split()) for text in texts]
