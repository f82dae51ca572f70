"""Counts the errors of hypotheses against references; the alignment is jiwer's."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer

from app.contract.evaluation import ErrorCounts, UtteranceResult
from app.reports.normalizers import Normalizer

Metric = Literal["wer", "cer"]

# Languages written without spaces between words (by Whisper's codes): words cannot be counted.
UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue", "km"})
# Whisper's own sign of a transcript that repeats itself.
HIGHEST_COMPRESSION_RATIO = 2.4


@dataclass(frozen=True)
class UtteranceScore:
    """An utterance's normalised texts and what differs between them."""

    index: int
    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts
    compression_ratio: float

    def counts(self, metric: Metric) -> ErrorCounts:
        """Return the counts in the metric's units."""
        return self.words if metric == "wer" else self.characters


def metric_for(language: str | None) -> Metric:
    """Return `cer` for a language that is written without spaces, else `wer`."""
    return "cer" if language in UNSPACED_LANGUAGES else "wer"


def score(
    utterances: Sequence[UtteranceResult], normalizer: Normalizer, *, metric: Metric = "wer"
) -> tuple[UtteranceScore, ...]:
    """Return one score for each utterance, in order.

    Characters are Unicode code points with single spaces between words, as jiwer counts them;
    where the metric is `cer`, spaces mean nothing and are left out.
    """
    references = [normalizer(utterance.reference) for utterance in utterances]
    hypotheses = [normalizer(utterance.hypothesis) for utterance in utterances]
    words = count_word_errors(references, hypotheses)
    if metric == "cer":
        characters = count_character_errors(_joined(references), _joined(hypotheses))
    else:
        characters = count_character_errors(references, hypotheses)
    return tuple(
        UtteranceScore(
            index=utterance.index,
            reference=references[position],
            hypothesis=hypotheses[position],
            words=words[position],
            characters=characters[position],
            compression_ratio=compression_ratio(utterance.hypothesis),
        )
        for position, utterance in enumerate(utterances)
    )


def count_word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Return the counts of each pair of texts, in words; an empty reference has insertions only."""
    if not references:
        return []
    return _counts(jiwer.process_words(list(references), list(hypotheses)).alignments)


def count_character_errors(
    references: Sequence[str], hypotheses: Sequence[str]
) -> list[ErrorCounts]:
    """Return the counts of each pair of texts, in characters."""
    if not references:
        return []
    return _counts(jiwer.process_characters(list(references), list(hypotheses)).alignments)


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Return the corpus-level counts: errors and reference units summed, then one rate."""
    return sum(counts, ErrorCounts())


def sentence_error_rate(scores: Sequence[UtteranceScore], metric: Metric) -> float | None:
    """Return the fraction of utterances with any error; None for none."""
    if not scores:
        return None
    return sum(score.counts(metric).errors > 0 for score in scores) / len(scores)


def compression_ratio(text: str) -> float:
    """Return bytes of UTF-8 over bytes after zlib, as Whisper judges repetition; 0 for no text."""
    content = text.encode()
    return len(content) / len(zlib.compress(content)) if content else 0.0


def _joined(texts: Sequence[str]) -> list[str]:
    return ["".join(text.split()) for text in texts]


def _counts(alignments: Sequence[Sequence[jiwer.AlignmentChunk]]) -> list[ErrorCounts]:
    counts = []
    for alignment in alignments:
        lengths = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
        for chunk in alignment:
            in_reference = chunk.ref_end_idx - chunk.ref_start_idx
            in_hypothesis = chunk.hyp_end_idx - chunk.hyp_start_idx
            lengths[chunk.type] += in_hypothesis if chunk.type == "insert" else in_reference
        counts.append(
            ErrorCounts(
                substitutions=lengths["substitute"],
                deletions=lengths["delete"],
                insertions=lengths["insert"],
                hits=lengths["equal"],
            )
        )
    return counts
