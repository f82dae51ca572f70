"""The utterances that a merge changed most against another system, for the HTML page."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from app.contract.evaluation import ErrorCounts, UtteranceResult
from app.reports.comparison import counterpart
from app.reports.scored import ScoredDataset
from app.reports.scoring import UtteranceScore
from app.reports.worst import Pieces, pieces_of


@dataclass(frozen=True)
class Heard:
    """What a system heard in an utterance."""

    scored: ScoredDataset
    score: UtteranceScore

    @property
    def counts(self) -> ErrorCounts:
        """Its errors, in the metric's units."""
        return self.score.counts(self.scored.metric)

    @property
    def pieces(self) -> Pieces:
        """Its alignment."""
        return pieces_of(self.scored, self.score)


@dataclass(frozen=True)
class Change:
    """An utterance as another system (`before`) and the merge (`after`) heard it."""

    utterance: UtteranceResult
    before: Heard
    after: Heard

    @property
    def added(self) -> int:
        """The merge's errors minus the other system's."""
        return self.after.counts.errors - self.before.counts.errors


@dataclass(frozen=True)
class Changes:
    """The utterances with more (`worse`) and fewer (`better`) errors, most changed first.

    `utterances` counts all that both systems decoded.
    """

    system: str
    utterances: int
    worse: tuple[Change, ...]
    better: tuple[Change, ...]


def changes_against(
    scored: ScoredDataset,
    others: Mapping[str, Sequence[ScoredDataset]],
    experts: Collection[str],
) -> list[Changes]:
    """Return the changes against the base and against one expert, where they are comparable.

    The expert is the dataset's own, by its name, or else the one with the lowest rate.
    """
    found = {name: counterpart(scored, results) for name, results in others.items()}
    comparable = {name: other for name, other in found.items() if other is not None}
    chosen = [name for name in ("base",) if name in comparable]
    rivals = {name: other for name, other in comparable.items() if name in experts}
    if rivals:
        chosen.append(_own_expert(scored.evaluated.name, rivals))
    return [_changes(scored, name, comparable[name]) for name in chosen]


def _changes(merged: ScoredDataset, system: str, other: ScoredDataset) -> Changes:
    """Return the merge's changes against a system; among equals, the manifest's order stays."""
    theirs = {score.index: score for score in other.scores}
    found = [
        Change(utterance, Heard(other, theirs[score.index]), Heard(merged, score))
        for score, utterance in zip(merged.scores, merged.evaluated.result.utterances, strict=True)
        if score.index in theirs
    ]
    worse = sorted((one for one in found if one.added > 0), key=lambda one: -one.added)
    better = sorted((one for one in found if one.added < 0), key=lambda one: one.added)
    return Changes(system, len(found), tuple(worse), tuple(better))


def _own_expert(dataset: str, rivals: Mapping[str, ScoredDataset]) -> str:
    """Return the expert whose name the dataset has (in it), or the one with the lowest rate."""

    def fit(name: str) -> tuple[int, float]:
        named = re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", dataset, re.IGNORECASE)
        rate = rivals[name].rate.counts.rate
        return -len(name) if named else 0, float("inf") if rate is None else rate

    return min(rivals, key=fit)
