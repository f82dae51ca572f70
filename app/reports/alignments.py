"""Which units (words or characters) of a reference became which of a hypothesis; jiwer aligns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jiwer

from app.contract.evaluation import ErrorCounts

Metric = Literal["wer", "cer"]
# Stretches in reading order, each with its type and its place on both sides.
Alignment = tuple[jiwer.AlignmentChunk, ...]


def align_words(references: Sequence[str], hypotheses: Sequence[str]) -> list[Alignment]:
    """Return the alignment of each pair of texts by words, which single spaces part."""
    if not references:
        return []
    return _alignments(jiwer.process_words(list(references), list(hypotheses)))


def align_characters(references: Sequence[str], hypotheses: Sequence[str]) -> list[Alignment]:
    """Return the alignment of each pair of texts by Unicode code points."""
    if not references:
        return []
    return _alignments(jiwer.process_characters(list(references), list(hypotheses)))


def count_errors(alignment: Alignment) -> ErrorCounts:
    """Return how many units were hit, substituted, deleted and inserted."""
    lengths = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for chunk in alignment:
        in_reference = chunk.ref_end_idx - chunk.ref_start_idx
        in_hypothesis = chunk.hyp_end_idx - chunk.hyp_start_idx
        lengths[chunk.type] += in_hypothesis if chunk.type == "insert" else in_reference
    return ErrorCounts(
        substitutions=lengths["substitute"],
        deletions=lengths["delete"],
        insertions=lengths["insert"],
        hits=lengths["equal"],
    )


def stretches(
    reference: str, hypothesis: str, alignment: Alignment, metric: Metric
) -> list[dict[str, str]]:
    """Return an alignment for people, as `{"type", "reference", "hypothesis"}` in reading order.

    The type is equal, substitute, delete or insert; `alignment` is in the metric's units.
    """
    expected, heard = units(reference, metric), units(hypothesis, metric)
    separator = " " if metric == "wer" else ""
    return [
        {
            "type": chunk.type,
            "reference": separator.join(expected[chunk.ref_start_idx : chunk.ref_end_idx]),
            "hypothesis": separator.join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        }
        for chunk in alignment
    ]


def units(text: str, metric: Metric) -> list[str]:
    """Return the words of a normalised text, or its characters without the spaces."""
    words = text.split()
    return words if metric == "wer" else list("".join(words))


def _alignments(output: jiwer.WordOutput | jiwer.CharacterOutput) -> list[Alignment]:
    return [tuple(chunks) for chunks in output.alignments]
