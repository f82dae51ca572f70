"""Sets a merge's result beside that of another system, where the two can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from app.reports.averages import average
from app.reports.confidence import (
    interval,
    probability_of_improvement,
    ratio,
    resample,
    sampling,
)
from app.reports.scored import ScoredDataset
from app.reports.significance import mapsswe

# Stands for a setting of the checkpoint's own that it does not have.
UNSET = "Whisper's default"


def compare(
    scored: ScoredDataset, others: Mapping[str, Sequence[ScoredDataset]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return (differences by system, for the other systems the reason why there is none).

    Compared are results on the same manifest, decoded by the same settings and normalised alike;
    of several the newest, `others` being oldest first.
    """
    differences: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for name, results in others.items():
        other = counterpart(scored, results)
        if other is not None:
            differences[name] = difference(scored, other)
        else:
            reasons[name] = _reason(scored, results)
    return differences, reasons


def counterpart(scored: ScoredDataset, results: Sequence[ScoredDataset]) -> ScoredDataset | None:
    """Return the result that a result can be compared with, the newest of several; else None."""
    alike = [other for other in results if _why_not(scored, other) is None]
    return _preferred(scored, alike) if alike else None


def comparable_averages(
    mine: Sequence[ScoredDataset], results: Sequence[ScoredDataset]
) -> dict[str, dict[str, Any]]:
    """Return another system's averages over the merge's sets, none where one is not comparable.

    Until the merge has a result they are over all of the system's own.
    """
    latest = {one.evaluated.name: one for one in mine}
    if not latest:
        return average(one.rate for one in results)
    found = {name: counterpart(one, results) for name, one in latest.items()}
    rates = [
        replace(other.rate, name=name, group=latest[name].evaluated.group)
        for name, other in found.items()
        if other is not None
    ]
    missing = {name: latest[name].evaluated.group for name in found if found[name] is None}
    return average(rates, missing)


def difference(merged: ScoredDataset, other: ScoredDataset) -> dict[str, Any]:
    """Return how the merge does against the other system, over the utterances both decoded.

    One that a system skipped would favour that system. `delta` is the merge's rate less the
    other's (below 0 the merge is better), `delta_ci95` its paired bootstrap interval. None stands
    for what cannot be said: a rate without reference words, an interval of a single unit.
    """
    mine = {score.index: position for position, score in enumerate(merged.scores)}
    theirs = {score.index: position for position, score in enumerate(other.scores)}
    shared = [index for index in mine if index in theirs]
    here, there = ([places[index] for index in shared] for places in (mine, theirs))
    counts = np.stack([merged.errors[here], other.errors[there], merged.lengths[here]], axis=1)
    errors, other_errors, length = (int(count) for count in counts.sum(axis=0))
    test = mapsswe(
        (merged.scores[first].alignment, other.scores[second].alignment)
        for first, second in zip(here, there, strict=True)
    )
    utterances = [merged.evaluated.result.utterances[position] for position in here]
    drawn = sampling(merged.evaluated.name, utterances)
    sums = resample(drawn, counts) if drawn.units > 1 else None
    return {
        merged.metric: other_errors / length if length else None,
        "delta": (errors - other_errors) / length if length else None,
        "delta_ci95": None
        if sums is None or not length
        else interval(ratio(sums[:, 0] - sums[:, 1], sums[:, 2])),
        "utterances": len(shared),
        "segments": test.segments,
        "mapsswe_p": test.p,
        "probability_of_improvement": None
        if sums is None
        else probability_of_improvement(sums[:, 0], sums[:, 1]),
    }


def _preferred(scored: ScoredDataset, alike: Sequence[ScoredDataset]) -> ScoredDataset:
    named = [other for other in alike if other.evaluated.name == scored.evaluated.name]
    return (named or alike)[-1]


def _reason(scored: ScoredDataset, results: Sequence[ScoredDataset]) -> str:
    name, digest = scored.evaluated.name, scored.evaluated.result.manifest_sha256
    near = [
        other
        for other in results
        if digest == other.evaluated.result.manifest_sha256 or name == other.evaluated.name
    ]
    if not near:
        return "it was not evaluated on this dataset"
    return _why_not(scored, _preferred(scored, near)) or ""


def _why_not(one: ScoredDataset, other: ScoredDataset) -> str | None:
    """Return why two results cannot be compared, or None if they can."""
    mine, its = one.evaluated.result, other.evaluated.result
    if mine.manifest_sha256 != its.manifest_sha256:
        return f"its manifest is another (sha256 {its.manifest_sha256})"
    settings, others = mine.decoding.settings, its.decoding.settings
    unknown = [one.decoding.checkpoint_settings is None for one in (mine, its)]
    if any(unknown) and not all(unknown):
        whose = "this result" if unknown[0] else "its result"
        return f"{whose} is from before the checkpoint's own settings were noted; evaluate again"
    changed = [
        f"{name} {others.get(name, UNSET)} instead of {settings.get(name, UNSET)}"
        for name in dict.fromkeys((*settings, *others))
        if settings.get(name) != others.get(name)
    ]
    if changed:
        return f"it was decoded with {', '.join(changed)}"
    if (one.normalizer.as_record(), one.metric) != (other.normalizer.as_record(), other.metric):
        record = other.normalizer.as_record()
        return f"its texts are normalised by {record['name']} {record['version']}"
    indices = {utterance.index for utterance in mine.utterances}
    if not any(utterance.index in indices for utterance in its.utterances):
        return "no utterance was decoded by both"
    return None
