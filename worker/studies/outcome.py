"""Decides which trials of a study are kept, and which one is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.contract.errors import UndefinedMergeError
from app.contract.spaces import Study
from worker.studies.racing import front
from worker.studies.search import Tried, importance

Row = Mapping[Any, Any]


def outcome_of(study: Study, trials: Sequence[Row]) -> dict[str, Any]:
    """Return the outcome after all trials: the winner, the front, and the kept trials, best first.

    Nothing is merged yet. UndefinedMergeError if every trial failed.
    """
    complete = [trial for trial in trials if trial["status"] == "complete"]
    if trials and all(trial["status"] == "failed" for trial in trials):
        raise UndefinedMergeError(f"Every trial failed; the first: {trials[0]['reason']}")
    if study.request.development is None:
        kept = [int(trial["number"]) for trial in complete]
        return _described(None, kept, [], "Without development sets nothing is chosen.", {})
    shares = importance(study, [tried(trial) for trial in trials])
    feasible = {
        int(trial["number"]): tuple(trial["scores"]["objectives"])
        for trial in complete
        if trial["scores"]["feasible"]
    }
    if not feasible:
        return _described(None, [], [], _why_none(study, trials, complete), shares)
    best = front(feasible)
    ranked = [*best, *sorted(feasible.keys() - set(best), key=lambda n: (feasible[n], n))]
    if len(study.measures) > 1 and not study.request.keeps_all:
        ranked = best
    if study.request.keep != "all":
        ranked = ranked[: study.request.keep]
    return _described(best[0], ranked, best, None, shares)


def tried(trial: Row) -> Tried:
    """Return what a search learns from a trial that is over."""
    scores = trial["scores"]
    objectives = scores.get("expected")
    return Tried(
        batch=trial["batch"],
        candidate=trial["candidate"],
        values=trial["point"],
        scores=tuple(objectives) if objectives and trial["status"] != "failed" else None,
        violations=tuple(scores.get("violations", ())),
    )


def _described(
    winner: int | None,
    kept: Sequence[int],
    best: Sequence[int],
    reason: str | None,
    shares: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "winner": winner,
        "shipped": None,
        "reason": reason,
        "front": list(best),
        "kept": [{"trial": number, "merge_id": None, "evaluation_id": None} for number in kept],
        "importance": dict(shares),
    }


def _why_none(study: Study, trials: Sequence[Row], complete: Sequence[Row]) -> str:
    """Return why no trial can be shipped: the constraint that the best of them exceeds."""
    if not complete:
        return (
            "No trial was decoded to the end: each was stopped early, or failed. "
            f"#0: {trials[0]['reason']}."
        )
    nearest = min(complete, key=lambda trial: max(trial["scores"]["violations"], default=0.0))
    violations = nearest["scores"]["violations"]
    constraint, _ = study.limits[int(np.argmax(violations))]
    return (
        f"No trial meets all constraints. #{nearest['number']} comes nearest and exceeds the "
        f"one on {constraint.set} by {100 * max(violations):.1f} points."
    )
