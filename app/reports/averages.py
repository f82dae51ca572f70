"""Averages over datasets: macro (each set counts once) and micro (each word counts once)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from app.contract.evaluation import ErrorCounts, Group
from app.reports.scoring import Metric, total

# The paper's "Full Avg.": in-domain and out-of-domain sets together.
FULL = frozenset({"in_domain", "out_of_domain"})
ALWAYS_SHOWN = ("in_domain", "out_of_domain", "full", "all")


@dataclass(frozen=True)
class DatasetRate:
    """What an average needs of one dataset's score; `counts` are in the metric's units."""

    name: str
    group: Group
    metric: Metric
    counts: ErrorCounts


def average(rates: Iterable[DatasetRate]) -> dict[str, dict[str, Any]]:
    """Return `{"macro", "micro", "datasets"}` of each group, of `full` and of `all`.

    Of several results of one name the last counts. Rates are fractions; macro is the mean of the
    sets that have a rate, and None without any. Groups beyond the paper's two are there if a
    set is in them.
    """
    latest = list({rate.name: rate for rate in rates}.values())
    averages = {}
    for group in get_args(Group):
        members = [rate for rate in latest if rate.group == group]
        if members or group in ALWAYS_SHOWN:
            averages[group] = _average(members)
    averages["full"] = _average([rate for rate in latest if rate.group in FULL])
    averages["all"] = _average(latest)
    return averages


def _average(rates: list[DatasetRate]) -> dict[str, Any]:
    known = [rate.counts.rate for rate in rates if rate.counts.rate is not None]
    pooled = {
        metric: total(rate.counts for rate in rates if rate.metric == metric).rate
        for metric in get_args(Metric)
        if any(rate.metric == metric for rate in rates)
    }
    return {
        "macro": sum(known) / len(known) if known else None,
        "micro": next(iter(pooled.values())) if len(pooled) == 1 else None,
        "datasets": len(known),
        **_both(pooled),
    }


def _both(pooled: Mapping[str, float | None]) -> dict[str, Any]:
    # Words and characters are never pooled: where a group has both, each gets its own rate.
    return {"micro_by_metric": dict(pooled)} if len(pooled) > 1 else {}
