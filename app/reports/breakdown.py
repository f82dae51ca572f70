"""Error rates by speaker and by duration, for the HTML page."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.contract.evaluation import ErrorCounts, UtteranceResult
from app.reports.scored import ScoredDataset

# Seconds; an utterance of exactly five is among those from 5 to 10.
_LIMITS = (2, 5, 10, 20)
_DURATIONS = ("under 2 s", "2 to 5 s", "5 to 10 s", "10 to 20 s", "20 s and more")


@dataclass(frozen=True)
class Part:
    """The utterances of a speaker or a duration, as the merge and the base heard them."""

    title: str
    utterances: int
    merge: ErrorCounts
    base: ErrorCounts | None

    @property
    def delta(self) -> float | None:
        """The merge's rate minus the base's, or None without one of them."""
        if self.base is None or self.merge.rate is None or self.base.rate is None:
            return None
        return self.merge.rate - self.base.rate


def by_duration(merged: ScoredDataset, base: ScoredDataset | None) -> list[Part]:
    """Return the rates by duration, shortest first; ranges without utterances are left out."""
    parts = _parts(merged, base, lambda one: _DURATIONS[bisect_right(_LIMITS, one.audio_seconds)])
    return sorted(parts, key=lambda part: _DURATIONS.index(part.title))


def by_speaker(merged: ScoredDataset, base: ScoredDataset | None) -> list[Part]:
    """Return the rates of the speakers, highest first; none if there are not at least two."""
    parts = _parts(merged, base, lambda one: one.speaker)
    if len(parts) < 2:
        return []
    return sorted(parts, key=lambda part: (-_or_zero(part.merge.rate), part.title))


def _parts(
    merged: ScoredDataset,
    base: ScoredDataset | None,
    title_of: Callable[[UtteranceResult], str | None],
) -> list[Part]:
    """Return the utterances by title; with a base, only those that it decoded too."""
    theirs = None if base is None else {one.index: one.counts(base.metric) for one in base.scores}
    found: dict[str, list[tuple[ErrorCounts, ErrorCounts]]] = {}
    for score, utterance in zip(merged.scores, merged.evaluated.result.utterances, strict=True):
        title = title_of(utterance)
        if title is not None and (theirs is None or score.index in theirs):
            other = ErrorCounts() if theirs is None else theirs[score.index]
            found.setdefault(title, []).append((score.counts(merged.metric), other))
    return [_part(title, pairs, has_base=base is not None) for title, pairs in found.items()]


def _part(title: str, pairs: Sequence[tuple[ErrorCounts, ErrorCounts]], *, has_base: bool) -> Part:
    mine, theirs = (sum(counts, ErrorCounts()) for counts in zip(*pairs, strict=True))
    return Part(title, len(pairs), mine, theirs if has_base else None)


def _or_zero(rate: float | None) -> float:
    return 0.0 if rate is None else rate
