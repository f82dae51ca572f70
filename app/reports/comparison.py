"""Compares a merge's results with other systems', where they are comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from app.reports.averages import average
from app.reports.confidence import (
    Counts,
    Floats,
    interval,
    probability_of_improvement,
    ratio,
    resample,
    sampling,
    two_tailed,
)
from app.reports.scored import ScoredDataset
from app.reports.significance import mapsswe

# Stands for a setting that a checkpoint does not have.
UNSET = "Whisper's default"


def compare(
    scored: ScoredDataset, others: Mapping[str, Sequence[ScoredDataset]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return (differences by system, reasons by system that is not comparable).

    Results are comparable if they have the same manifest, decoding settings and normaliser. The
    newest comparable result counts; `others` are oldest first.
    """
    differences: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for name, results in others.items():
        other = counterpart(scored, results)
        if other is not None:
            differences[name] = difference(scored, other)
        else:
            reasons[name] = why_not(scored, results)
    return differences, reasons


def counterpart(scored: ScoredDataset, results: Sequence[ScoredDataset]) -> ScoredDataset | None:
    """Return the newest result that is comparable with this one, or None."""
    alike = [other for other in results if _why_not(scored, other) is None]
    return _preferred(scored, alike) if alike else None


def comparable_averages(
    mine: Sequence[ScoredDataset], results: Sequence[ScoredDataset]
) -> dict[str, dict[str, Any]]:
    """Return another system's averages over the merge's datasets.

    Groups with a dataset that is not comparable have none. Until the merge has results, averages
    are over all of the system's datasets.
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
    """Return the differences between the merge and another system.

    Only utterances that both decoded count, since skipping one would favour the system that skips.
    `delta` is the merge's rate minus the other's (below 0 the merge is better), `delta_ci95` its
    paired bootstrap interval. A rate without reference words is None, as is an interval of a single
    unit.
    """
    return Pair(merged, other).difference


def average_difference(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return `delta`, `delta_ci95` and `p` of a macro average, given the pairs of its datasets.

    A stratified bootstrap: units are resampled within each dataset, both systems with the same
    draws. `p` is two-tailed, by how many replicates have a difference of the other sign; with 1000
    of them it is at least 0.002.
    """
    deltas = [pair.delta for pair in pairs if pair.delta is not None]
    drawn = [pair.deltas for pair in pairs if pair.delta is not None]
    known = [replicates for replicates in drawn if replicates is not None]
    found: dict[str, Any] = {"delta": sum(deltas) / len(deltas) if deltas else None}
    if not known or len(known) < len(drawn):
        return found | {"delta_ci95": None, "p": None}
    replicates = np.mean(known, axis=0)
    return found | {"delta_ci95": interval(replicates), "p": two_tailed(replicates)}


@dataclass(frozen=True)
class Pair:
    """Two systems' results on one dataset, on the utterances that both decoded."""

    merged: ScoredDataset
    other: ScoredDataset

    @cached_property
    def difference(self) -> dict[str, Any]:
        """What `difference` returns."""
        merged, other = self.merged, self.other
        test = mapsswe(
            (merged.scores[first].alignment, other.scores[second].alignment)
            for first, second in zip(*self._positions, strict=True)
        )
        _, other_errors, length = self._totals
        sums, deltas = self._sums, self.deltas
        return {
            merged.metric: other_errors / length if length else None,
            "delta": self.delta,
            "delta_ci95": None if deltas is None else interval(deltas),
            "utterances": len(self._positions[0]),
            "segments": test.segments,
            "mapsswe_p": test.p,
            "probability_of_improvement": None
            if sums is None
            else probability_of_improvement(sums[:, 0], sums[:, 1]),
        }

    @property
    def delta(self) -> float | None:
        """The first rate minus the second; None without reference words."""
        errors, other_errors, length = self._totals
        return (errors - other_errors) / length if length else None

    @cached_property
    def deltas(self) -> Floats | None:
        """The difference in each replicate; None without reference words or a second unit."""
        sums = self._sums
        if sums is None or not self._totals[2]:
            return None
        return ratio(sums[:, 0] - sums[:, 1], sums[:, 2])

    @cached_property
    def _positions(self) -> tuple[list[int], list[int]]:
        mine = {score.index: position for position, score in enumerate(self.merged.scores)}
        theirs = {score.index: position for position, score in enumerate(self.other.scores)}
        shared = [index for index in mine if index in theirs]
        return [mine[index] for index in shared], [theirs[index] for index in shared]

    @cached_property
    def _counts(self) -> Counts:
        here, there = self._positions
        errors = (self.merged.errors[here], self.other.errors[there])
        return np.stack([*errors, self.merged.lengths[here]], axis=1)

    @cached_property
    def _totals(self) -> tuple[int, int, int]:
        errors, other_errors, length = (int(count) for count in self._counts.sum(axis=0))
        return errors, other_errors, length

    @cached_property
    def _sums(self) -> Counts | None:
        utterances = self.merged.evaluated.result.utterances
        plan = sampling(
            self.merged.evaluated.name, [utterances[position] for position in self._positions[0]]
        )
        return resample(plan, self._counts) if plan.units > 1 else None


def _preferred(scored: ScoredDataset, alike: Sequence[ScoredDataset]) -> ScoredDataset:
    named = [other for other in alike if other.evaluated.name == scored.evaluated.name]
    return (named or alike)[-1]


def why_not(scored: ScoredDataset, results: Sequence[ScoredDataset]) -> str:
    """Return why none of a system's results is comparable with this one."""
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
    """Return why two results are not comparable, or None if they are."""
    mine, its = one.evaluated.result, other.evaluated.result
    if mine.manifest_sha256 != its.manifest_sha256:
        return f"it has a different manifest (sha256 {its.manifest_sha256})"
    settings, others = mine.decoding.settings, its.decoding.settings
    unknown = [one.decoding.checkpoint_settings is None for one in (mine, its)]
    if any(unknown) and not all(unknown):
        whose = "this result" if unknown[0] else "its result"
        return f"{whose} is from before the checkpoint's settings were recorded; evaluate again"
    changed = [
        f"{name} {others.get(name, UNSET)} instead of {settings.get(name, UNSET)}"
        for name in dict.fromkeys((*settings, *others))
        if settings.get(name) != others.get(name)
    ]
    if changed:
        return f"it was decoded with {', '.join(changed)}"
    if (one.normalizer.as_record(), one.metric) != (other.normalizer.as_record(), other.metric):
        record = other.normalizer.as_record()
        return f"its normaliser is {record['name']} {record['version']}"
    indices = {utterance.index for utterance in mine.utterances}
    if not any(utterance.index in indices for utterance in its.utterances):
        return "no utterance was decoded by both systems"
    return None
