"""Alignment that accepts compounds: "white paper" on one side matches "whitepaper" on the other.

The Open ASR Leaderboard scores so (kaldialign's `merge_compounds`): adjacent words on one side may
match one word on the other at no cost. The error counts equal kaldialign's; the running time is
bounded for any text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from app.reports.alignments import Alignment, Chunk, align_numbered

# The largest number of words in a compound.
_MOST_PARTS = 10
# Texts are cut this many words inside runs of equal words, where the two sides are independent.
_ANCHOR = 5
# Limits for a section between cuts; beyond them, its compounds are ignored.
_MOST_COMPOUNDS = 60
_MOST_CELLS = 1_000_000


class _Compound(NamedTuple):
    """Words of the reference that match words of the hypothesis when joined; ends are exclusive."""

    start: int
    end: int
    hyp_start: int
    hyp_end: int


def align_compounds(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Return the alignment of two lists of words with the fewest errors, with compounds joined.

    A compound is a chunk of type equal with different numbers of words on its two sides.
    """
    chunks: list[Chunk] = []
    for start, end, hyp_start, hyp_end in _sections(reference, hypothesis):
        found = _align(reference[start:end], hypothesis[hyp_start:hyp_end])
        chunks += [_moved(chunk, start, hyp_start) for chunk in found]
    return tuple(chunks)


def _sections(
    reference: Sequence[str], hypothesis: Sequence[str]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, end, hyp_start, hyp_end) of sections, cut inside long runs of equal words."""
    start = hyp_start = 0
    for chunk in align_numbered(reference, hypothesis):
        if chunk.type == "equal" and chunk.ref_end_idx - chunk.ref_start_idx >= 2 * _ANCHOR:
            for ref, hyp in (
                (chunk.ref_start_idx + _ANCHOR, chunk.hyp_start_idx + _ANCHOR),
                (chunk.ref_end_idx - _ANCHOR, chunk.hyp_end_idx - _ANCHOR),
            ):
                yield start, ref, hyp_start, hyp
                start, hyp_start = ref, hyp
    yield start, len(reference), hyp_start, len(hypothesis)


def _align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    plain = align_numbered(reference, hypothesis)
    if all(chunk.type == "equal" for chunk in plain):
        return plain
    if len(reference) * len(hypothesis) > _MOST_CELLS:
        return plain
    compounds = _find(reference, hypothesis)
    if not compounds or len(compounds) > _MOST_COMPOUNDS:
        return plain
    chosen = _cheapest(reference, hypothesis, compounds)
    chunks: list[Chunk] = []
    at = hyp_at = 0
    for one in [
        *chosen,
        _Compound(len(reference), len(reference), len(hypothesis), len(hypothesis)),
    ]:
        between = align_numbered(reference[at : one.start], hypothesis[hyp_at : one.hyp_start])
        chunks += [_moved(chunk, at, hyp_at) for chunk in between]
        if one.start < one.end:
            chunks.append(Chunk("equal", *one))
        at, hyp_at = one.end, one.hyp_end
    return tuple(chunks)


def _find(reference: Sequence[str], hypothesis: Sequence[str]) -> list[_Compound]:
    """Return all compounds in the order of the reference."""
    found = [
        _Compound(start, end, place, place + 1)
        for start, end, place in _joined(reference, hypothesis)
    ]
    found += [
        _Compound(place, place + 1, start, end)
        for start, end, place in _joined(hypothesis, reference)
    ]
    return sorted(found)


def _joined(parts: Sequence[str], words: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, place) of `parts` that join to the word at `place` in `words`."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(word, []).append(place)
    longest = max(map(len, words), default=0)
    for start in range(len(parts)):
        joined = parts[start]
        for end in range(start + 2, min(start + _MOST_PARTS, len(parts)) + 1):
            joined += parts[end - 1]
            if len(joined) > longest:
                break
            for place in places.get(joined, ()):
                yield start, end, place


def _cheapest(
    reference: Sequence[str], hypothesis: Sequence[str], compounds: Sequence[_Compound]
) -> list[_Compound]:
    """Return the sequence of compounds with the fewest errors between them."""
    numbers: dict[str, int] = {}
    ref, hyp = (
        [numbers.setdefault(word, len(numbers)) for word in side]
        for side in (reference, hypothesis)
    )
    first = _Compound(0, 0, 0, 0)
    last = _Compound(len(ref), len(ref), len(hyp), len(hyp))
    nodes = [first, *compounds, last]
    # For each node: the fewest errors up to its end, and the node before it on that path.
    best: list[tuple[int, int]] = [(0, 0)]
    for number, one in enumerate(nodes[1:], start=1):
        ways = [
            (
                best[before][0]
                + Levenshtein.distance(
                    ref[other.end : one.start], hyp[other.hyp_end : one.hyp_start]
                ),
                before,
            )
            for before, other in enumerate(nodes[:number])
            if other.end <= one.start and other.hyp_end <= one.hyp_start
        ]
        best.append(min(ways))
    chosen: list[_Compound] = []
    number = best[-1][1]
    while number:
        chosen.append(nodes[number])
        number = best[number][1]
    return chosen[::-1]


def _moved(chunk: Chunk, by: int, hyp_by: int) -> Chunk:
    return Chunk(
        chunk.type,
        chunk.ref_start_idx + by,
        chunk.ref_end_idx + by,
        chunk.hyp_start_idx + hyp_by,
        chunk.hyp_end_idx + hyp_by,
    )
