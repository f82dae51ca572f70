"""Other merges with comparable results: the points of a merge's trade-off chart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from app.contract.evaluation import DecodingRecord, NormalizerName
from app.reports.names import label_of
from app.services.selection import MERGE, unpack
from app.storage import evaluations, merges

if TYPE_CHECKING:
    from app.reports.charts import ChartPoint
    from app.reports.scored import ScoredDataset

MOST_PEERS = 50
_GROUPS = ("in_domain", "out_of_domain")
# Number of cached rates; they are immutable and small.
_REMEMBERED = 10_000


@dataclass(frozen=True)
class _Set:
    """The properties that another merge's result must share to be comparable."""

    group: str
    digest: str
    settings: Mapping[str, Any]
    normalizer: NormalizerName

    def has(self, result: Mapping[str, Any]) -> bool:
        """Return whether a complete result has this manifest and these decoding settings."""
        same = result["manifest_sha256"] == self.digest and not result.get("skipped")
        return same and DecodingRecord.model_validate(result["decoding"]).settings == self.settings


def find_peers(
    engine: Engine, merge_id: str, scored: Sequence[ScoredDataset], known: Sequence[str] = ()
) -> list[ChartPoint]:
    """Return the newest merges with complete results on all in- and out-of-domain sets of this one.

    At most MOST_PEERS, excluding this merge and those `known`. x is the in-domain, y the
    out-of-domain macro average, with this merge's normalisers.
    """
    from app.reports.charts import ChartPoint

    latest = {one.evaluated.name: one for one in scored}.values()
    # Sets without a rate do not count in averages.
    rated = [one for one in latest if one.rate.counts.rate is not None]
    sets = [_set_of(one) for one in rated if one.evaluated.group in _GROUPS]
    if {one.group for one in sets} != set(_GROUPS):
        return []
    points = []
    for row, found in _candidates(engine, sets, {merge_id, *known}):
        rates: dict[str, list[float]] = {group: [] for group in _GROUPS}
        for one, result in zip(sets, found, strict=True):
            rate = _rate(engine, result["evaluation_id"], result["dataset"], one.normalizer)
            if rate is not None:
                rates[one.group].append(rate)
        if sum(map(len, rates.values())) == len(sets):
            x, y = (fmean(rates[group]) for group in _GROUPS)
            points.append(
                ChartPoint(label_of(row["method"], row["recipe"]["parameters"]), x, y, "other")
            )
    return points


def _set_of(scored: ScoredDataset) -> _Set:
    result = scored.evaluated.result
    return _Set(
        scored.evaluated.group,
        result.manifest_sha256,
        result.decoding.settings,
        scored.normalizer.name,
    )


def _candidates(
    engine: Engine, sets: Sequence[_Set], without: set[str]
) -> Iterator[tuple[Mapping[Any, Any], list[Mapping[Any, Any]]]]:
    """Yield (merge, its newest result on each set), newest merge first, if it has all of them."""
    digests = sorted({one.digest for one in sets})
    found: dict[str, dict[int, Mapping[Any, Any]]] = {}
    for row in evaluations.outlines(engine, digests, most=8 * MOST_PEERS * len(sets)):
        if row["merge_id"] in without:
            continue
        mine = found.setdefault(str(row["merge_id"]), {})
        for number, one in enumerate(sets):
            if number not in mine and one.has(row["result"]["result"]):
                mine[number] = row
    whole = [merge_id for merge_id, mine in found.items() if len(mine) == len(sets)]
    for merge_id in whole[:MOST_PEERS]:
        merge = merges.get(engine, merge_id)
        if merge is not None:
            yield merge, [found[merge_id][number] for number in range(len(sets))]


@lru_cache(maxsize=_REMEMBERED)
def _rate(
    engine: Engine, evaluation_id: str, dataset: str, normalizer: NormalizerName
) -> float | None:
    from app.reports.scored import score_dataset
    from app.reports.scoring import total

    row = evaluations.result(engine, evaluation_id, MERGE, dataset)
    if row is None:  # deleted in the meantime
        return None
    scored = score_dataset(unpack(row), normalizer)
    if scored.evaluated.result.status != "succeeded":
        return None  # some utterances were not scored
    return total(score.counts(scored.metric) for score in scored.scores).rate
