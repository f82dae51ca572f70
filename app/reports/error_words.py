"""The words that a system most often confuses, deletes and inserts, for the HTML page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from app.reports.alignments import units
from app.reports.scored import ScoredDataset

AT_MOST = 10


@dataclass(frozen=True)
class ErrorWord:
    """A word (in CER a character) or a pair of them, and how often the merge and the base err.

    `reference` is empty for an insertion, `hypothesis` for a deletion; `base` is None if there is
    no comparable base.
    """

    reference: str
    hypothesis: str
    count: int
    base: int | None


@dataclass(frozen=True)
class ErrorWords:
    """The merge's most frequent errors of each kind; among equals, by the alphabet."""

    substituted: tuple[ErrorWord, ...]
    deleted: tuple[ErrorWord, ...]
    inserted: tuple[ErrorWord, ...]


def error_words(merged: ScoredDataset, base: ScoredDataset | None) -> ErrorWords:
    """Return the merge's most frequent errors on a dataset."""
    mine, theirs = _counted(merged), None if base is None else _counted(base)

    def most(kind: str) -> tuple[ErrorWord, ...]:
        ranked = sorted(mine[kind].items(), key=lambda item: (-item[1], item[0]))
        return tuple(
            ErrorWord(*pair, count, None if theirs is None else theirs[kind][pair])
            for pair, count in ranked[:AT_MOST]
        )

    return ErrorWords(most("substitute"), most("delete"), most("insert"))


def _counted(scored: ScoredDataset) -> dict[str, Counter[tuple[str, str]]]:
    """Return how often each (reference, hypothesis) occurs, by the kind of the error."""
    found: dict[str, Counter[tuple[str, str]]] = {
        kind: Counter() for kind in ("substitute", "delete", "insert")
    }
    for score in scored.scores:
        expected = units(score.reference, scored.metric)
        heard = units(score.hypothesis, scored.metric)
        for kind, first, last, start, stop in score.alignment:
            if kind == "substitute":
                found[kind].update(zip(expected[first:last], heard[start:stop], strict=True))
            elif kind == "delete":
                found[kind].update((word, "") for word in expected[first:last])
            elif kind == "insert":
                found[kind].update(("", word) for word in heard[start:stop])
    return found
