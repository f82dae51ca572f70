"""Alignments of references and hypotheses, by words or characters.

Uses RapidFuzz directly, as jiwer does, with the same counts. jiwer's argument checks would take
longer than the alignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

from app.contract.evaluation import ErrorCounts

Metric = Literal["wer", "cer"]
ChunkType = Literal["equal", "substitute", "delete", "insert"]
_TYPES: dict[str, ChunkType] = {
    "equal": "equal", "replace": "substitute", "delete": "delete", "insert": "insert",
}  # fmt: skip


class Chunk(NamedTuple):
    """A run of one type, and its position on both sides; ends are exclusive."""

    type: ChunkType
    ref_start_idx: int
    ref_end_idx: int
    hyp_start_idx: int
    hyp_end_idx: int


# Chunks in reading order.
Alignment = tuple[Chunk, ...]


def align_words(references: Iterable[str], hypotheses: Iterable[str]) -> list[Alignment]:
    """Return the alignment of each pair of texts by words."""
    return [
        align_numbered(reference.split(), hypothesis.split())
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]


def align_numbered(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Return the alignment of two lists of words."""
    # Numbers instead of words, since RapidFuzz compares strings by their hashes.
    numbers: dict[str, int] = {}
    return _align(
        [numbers.setdefault(word, len(numbers)) for word in reference],
        [numbers.setdefault(word, len(numbers)) for word in hypothesis],
    )


def align_characters(references: Iterable[str], hypotheses: Iterable[str]) -> list[Alignment]:
    """Return the alignment of each pair of texts by Unicode code points."""
    return [
        _align(reference, hypothesis)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]


def count_characters(reference: str, hypothesis: str) -> ErrorCounts:
    """Return the error counts by characters."""
    if reference == hypothesis:
        return ErrorCounts(hits=len(reference))
    kinds = [kind for kind, _, _ in Levenshtein.editops(reference, hypothesis).as_list()]
    substitutions, deletions = kinds.count("replace"), kinds.count("delete")
    return ErrorCounts(
        substitutions=substitutions,
        deletions=deletions,
        insertions=len(kinds) - substitutions - deletions,
        hits=len(reference) - substitutions - deletions,
    )


def count_errors(alignment: Alignment) -> ErrorCounts:
    """Return the error counts of an alignment."""
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


def aligned_texts(
    reference: str, hypothesis: str, alignment: Alignment, metric: Metric
) -> list[dict[str, str]]:
    """Return the alignment's texts as `{"type", "reference", "hypothesis"}` in reading order.

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


def _align(reference: Sequence[int] | str, hypothesis: Sequence[int] | str) -> Alignment:
    if reference == hypothesis:
        length = len(reference)
        return (Chunk("equal", 0, length, 0, length),) if length else ()
    return tuple(
        Chunk(_TYPES[one.tag], one.src_start, one.src_end, one.dest_start, one.dest_end)
        for one in Levenshtein.opcodes(reference, hypothesis)
    )
