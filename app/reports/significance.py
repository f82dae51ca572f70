"""MAPSSWE: whether two systems that heard the same speech differ by more than chance.

The matched-pair sentence-segment word error test of Gillick & Cox, "Some statistical issues in the
comparison of speech recognition algorithms", ICASSP 1989, as NIST's sc_stats does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from app.reports.alignments import Alignment

# So many units right by both systems, one after the other, part two segments: an error then has
# little to do with the one before.
BOUNDARY = 2


@dataclass(frozen=True)
class MatchedPairs:
    """The test's result; differences are errors of the first system less those of the second.

    `p` is two-tailed: the chance of such a difference between systems that are equally good. It
    and `z` are None where there is a difference and no spread to judge it by (one segment,
    or the same difference in each); sc_stats says z = 0 there. Fewer than some 50 segments are few
    for the normal distribution that the test leans on.
    """

    segments: int
    mean: float
    variance: float
    z: float | None
    p: float | None


def mapsswe(pairs: Iterable[tuple[Alignment, Alignment]]) -> MatchedPairs:
    """Return the test over all utterances: two alignments of each, with one reference.

    z = mean(d) / sqrt(var(d) / n) over the n segments' differences d, var with n - 1.
    """
    differences = [first - second for pair in pairs for first, second in segments(*pair)]
    count = len(differences)
    mean = sum(differences) / count if count else 0.0
    spread = sum((difference - mean) ** 2 for difference in differences)
    variance = spread / (count - 1) if count > 1 else 0.0
    if not any(differences):
        return MatchedPairs(count, 0.0, 0.0, 0.0, 1.0)
    if not variance:
        return MatchedPairs(count, mean, 0.0, None, None)
    z = mean / math.sqrt(variance / count)
    return MatchedPairs(count, mean, variance, z, math.erfc(abs(z) / math.sqrt(2)))


def segments(first: Alignment, second: Alignment) -> Iterator[tuple[int, int]]:
    """Yield the errors of both systems in each segment of an utterance that has any.

    A segment is a stretch around errors of either system, with BOUNDARY units between it and the
    next that both have right and nothing inserted among them.
    """
    errors: dict[int, list[int]] = {}
    for system, alignment in enumerate((first, second)):
        for slot, count in _errors(alignment):
            errors.setdefault(slot, [0, 0])[system] += count
    sums, last = [0, 0], 0
    for slot in sorted(errors):
        if sums != [0, 0] and _units_between(last, slot) >= BOUNDARY:
            yield sums[0], sums[1]
            sums = [0, 0]
        sums = [total + count for total, count in zip(sums, errors[slot], strict=True)]
        last = slot
    if sums != [0, 0]:
        yield sums[0], sums[1]


def _errors(alignment: Alignment) -> Iterator[tuple[int, int]]:
    """Yield (slot, errors): unit i of the reference is slot 2i + 1, what is inserted before it 2i.

    With that, units and the gaps between them have one order in every hypothesis.
    """
    for chunk in alignment:
        if chunk.type == "insert":
            yield 2 * chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            for unit in range(chunk.ref_start_idx, chunk.ref_end_idx):
                yield 2 * unit + 1, 1


def _units_between(slot: int, later: int) -> int:
    return later // 2 - (slot + 1) // 2
