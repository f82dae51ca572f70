"""Averages over datasets: macro (each dataset counts once) and micro (each word counts once)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from app.contract.evaluation import ErrorCounts, Group
from app.reports.alignments import Metric
from app.reports.confidence import Floats, describe
from app.reports.scoring import total

# The paper's "Full Avg.": in-domain and out-of-domain sets together.
FULL = frozenset({"in_domain", "out_of_domain"})
ALWAYS_SHOWN = ("in_domain", "out_of_domain", "full", "all")


@dataclass(frozen=True)
class DatasetRate:
    """The data of one dataset for averages; `counts` are in the metric's units.

    `replicates` are the rates of the bootstrap's replicates, which resamples `unit`s.
    """

    name: str
    group: Group
    metric: Metric
    counts: ErrorCounts
    replicates: Floats | None = field(default=None, compare=False)
    unit: str = "utterance"
    audio_seconds: float = 0.0
    decode_seconds: float = 0.0


def average(
    rates: Iterable[DatasetRate], missing: Mapping[str, Group] | None = None
) -> dict[str, dict[str, Any]]:
    """Return `{"macro", "micro", "datasets", "ci95", "rtfx"}` of each group, `full` and `all`.

    If a name occurs several times, the last one counts. Rates are fractions; macro is the mean of
    the datasets with a rate, None if there are none. Groups other than the paper's two appear only
    if they have a dataset. `ci95` is the interval of the macro average, resampling units within the
    datasets. `rtfx` is the seconds of audio by the seconds of decoding. A group with datasets in
    `missing` (groups by name) has no rate, but lists them in `not_comparable`.
    """
    latest = list({rate.name: rate for rate in rates}.values())
    gone = missing or {}
    averages = {}
    for group in (*get_args(Group), "full", "all"):
        groups = FULL if group == "full" else set(get_args(Group)) if group == "all" else {group}
        members = [rate for rate in latest if rate.group in groups]
        absent = [name for name, its_group in gone.items() if its_group in groups]
        if members or absent or group in ALWAYS_SHOWN:
            averages[group] = _none(members, absent) if absent else _average(members)
    return averages


def _none(rates: list[DatasetRate], absent: list[str]) -> dict[str, Any]:
    return {
        "macro": None,
        "micro": None,
        "datasets": len(rates),
        "ci95": None,
        "rtfx": None,
        "not_comparable": absent,
    }


def _average(rates: list[DatasetRate]) -> dict[str, Any]:
    rated = [rate for rate in rates if rate.counts.rate is not None]
    known = [rate.counts.rate for rate in rated if rate.counts.rate is not None]
    pooled = {
        metric: total(rate.counts for rate in rates if rate.metric == metric).rate
        for metric in get_args(Metric)
        if any(rate.metric == metric for rate in rates)
    }
    return {
        "macro": sum(known) / len(known) if known else None,
        "micro": next(iter(pooled.values())) if len(pooled) == 1 else None,
        "datasets": len(known),
        "ci95": _confidence(rated),
        "rtfx": real_time_factor(
            sum(rate.audio_seconds for rate in rates), sum(rate.decode_seconds for rate in rates)
        ),
        **_both(pooled),
    }


def real_time_factor(audio_seconds: float, decode_seconds: float) -> float | None:
    """Return RTFx, as the Open ASR Leaderboard counts it; None if nothing was decoded."""
    return round(audio_seconds / decode_seconds, 2) if decode_seconds else None


def _confidence(rates: list[DatasetRate]) -> dict[str, Any] | None:
    drawn = [rate.replicates for rate in rates if rate.replicates is not None]
    if not drawn or len(drawn) < len(rates):
        return None
    units = {rate.unit for rate in rates}
    return describe(np.mean(drawn, axis=0), units.pop() if len(units) == 1 else "mixed")


def _both(pooled: Mapping[str, float | None]) -> dict[str, Any]:
    # Words and characters cannot be pooled; a group with both has a rate for each.
    return {"micro_by_metric": dict(pooled)} if len(pooled) > 1 else {}
