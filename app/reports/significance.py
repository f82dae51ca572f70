"""MAPSSWE: tests whether two systems differ on the same speech by more than chance.

The matched-pair sentence-segment word error test of Gillick & Cox, "Some statistical issues in the
comparison of speech recognition algorithms", ICASSP 1989, as NIST's sc_stats implements it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from app.reports.alignments import Alignment

# The number of consecutive units that both systems have right between two segments; errors in
# different segments are then nearly independent.
BOUNDARY = 2


@dataclass(frozen=True)
class MatchedPairs:
    """The test's result; differences are errors of the first system minus those of the second.

    `p` is two-tailed: the probability of such a difference between equally good systems. `p` and
    `z` are None if there is a difference but no variance (one segment, or the same difference in
    each), where sc_stats reports z = 0. Below about 50 segments the normal approximation is poor.
    """

    segments: int
    mean: float
    variance: float
    z: float | None
    p: float | None


def mapsswe(pairs: Iterable[tuple[Alignment, Alignment]]) -> MatchedPairs:
    """Return the test over all utterances, given both systems' alignments with the same reference.

    z = mean(d) / sqrt(var(d) / n) over the n segments' differences d; var divides by n - 1.
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


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return the p values corrected for how many there are, in the same order.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 1979: with
    the results below a level, the chance of any false one among them is at most that level.
    """
    corrected = [0.0] * len(probabilities)
    highest = 0.0
    ascending = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    for done, position in enumerate(ascending):
        highest = max(highest, probabilities[position] * (len(probabilities) - done))
        corrected[position] = min(1.0, highest)
    return corrected


def segments(first: Alignment, second: Alignment) -> Iterator[tuple[int, int]]:
    """Yield the errors of both systems in each segment of an utterance that has any.

    Between two segments there are BOUNDARY units that both systems have right, without insertions.
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
    """Yield (slot, errors): slot 2i + 1 is unit i of the reference, slot 2i the gap before it.

    So units and the insertions between them have the same order in every hypothesis.
    """
    for chunk in alignment:
        if chunk.type == "insert":
            yield 2 * chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            for unit in range(chunk.ref_start_idx, chunk.ref_end_idx):
                yield 2 * unit + 1, 1


def _units_between(slot: int, later: int) -> int:
    return later // 2 - (slot + 1) // 2
