"""Builds the answer of `GET /merges/{id}/wer` from what was decoded; scores, decodes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.contract.evaluation import EvaluatedDataset, NormalizerName
from app.reports.averages import DatasetRate, average
from app.reports.normalizers import Normalizer, find_normalizer
from app.reports.scoring import (
    HIGHEST_COMPRESSION_RATIO,
    Metric,
    UtteranceScore,
    metric_for,
    score,
    sentence_error_rate,
    total,
)


@dataclass(frozen=True)
class ScoredDataset:
    """A system's result on one dataset, scored."""

    evaluated: EvaluatedDataset
    normalizer: Normalizer
    metric: Metric
    scores: tuple[UtteranceScore, ...]

    @property
    def rate(self) -> DatasetRate:
        """What the averages need."""
        return DatasetRate(
            name=self.evaluated.name,
            group=self.evaluated.group,
            metric=self.metric,
            counts=total(score.counts(self.metric) for score in self.scores),
        )


def build_wer(
    merge_id: str,
    status: str,
    datasets: Sequence[EvaluatedDataset],
    systems: Mapping[str, Sequence[EvaluatedDataset]],
    *,
    normalizer: NormalizerName | None = None,
) -> dict[str, Any]:
    """Return the JSON document: the merge's datasets and averages, and those of other systems.

    `datasets` are the merge's results, oldest first; `systems` holds those of the base, the
    experts and other merges by name, in the order to show. `normalizer` scores everything with
    another one than each dataset's own. Rates are fractions; None where a reference has no words.
    """
    merged = [score_dataset(evaluated, normalizer) for evaluated in datasets]
    others = {
        name: [score_dataset(evaluated, normalizer) for evaluated in results]
        for name, results in systems.items()
    }
    return {
        "merge_id": merge_id,
        "status": status,
        "datasets": [
            {**_describe(scored), "compared_with": _compare(scored, others)} for scored in merged
        ],
        "averages": average(scored.rate for scored in merged),
        "systems": {
            name: {
                "datasets": [_describe(scored) for scored in results],
                "averages": average(scored.rate for scored in results),
            }
            for name, results in others.items()
        },
    }


def score_dataset(
    evaluated: EvaluatedDataset, normalizer: NormalizerName | None = None
) -> ScoredDataset:
    """Return the dataset's scores under its own normaliser, or the one given."""
    chosen = find_normalizer(normalizer or evaluated.normalizer)
    metric = metric_for(evaluated.result.language)
    scores = score(evaluated.result.utterances, chosen, metric=metric)
    return ScoredDataset(evaluated, chosen, metric, scores)


def _describe(scored: ScoredDataset) -> dict[str, Any]:
    result = scored.evaluated.result
    words = total(score.words for score in scored.scores)
    characters = total(score.characters for score in scored.scores)
    audio_seconds = sum(utterance.audio_seconds for utterance in result.utterances)
    decode_seconds = sum(utterance.decode_seconds for utterance in result.utterances)
    return {
        "name": scored.evaluated.name,
        "group": scored.evaluated.group,
        "status": result.status,
        "language": result.language,
        "metric": scored.metric,
        "wer": words.rate,
        "cer": characters.rate,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "hits": words.hits,
        "reference_words": words.reference_units,
        "characters": {
            **characters.model_dump(),
            "reference_characters": characters.reference_units,
        },
        "utterances": len(scored.scores),
        "sentence_error_rate": sentence_error_rate(scored.scores, scored.metric),
        "audio_seconds": round(audio_seconds, 3),
        "decode_seconds": round(decode_seconds, 3),
        "rtfx": round(audio_seconds / decode_seconds, 2) if decode_seconds else None,
        "normalizer": scored.normalizer.as_record(),
        "decoding": result.decoding.model_dump(),
        "warnings": _warnings(scored),
        "manifest_sha256": result.manifest_sha256,
    }


def _warnings(scored: ScoredDataset) -> dict[str, Any]:
    rates = [score.counts(scored.metric).rate for score in scored.scores]
    return {
        "empty_hypotheses": sum(
            bool(score.reference) and not score.hypothesis for score in scored.scores
        ),
        "wer_above_one": sum(rate is not None and rate > 1 for rate in rates),
        "compression_ratio_above_2.4": sum(
            score.compression_ratio > HIGHEST_COMPRESSION_RATIO for score in scored.scores
        ),
        "skipped": [skipped.model_dump() for skipped in scored.evaluated.result.skipped],
    }


def _compare(
    scored: ScoredDataset, others: Mapping[str, Sequence[ScoredDataset]]
) -> dict[str, dict[str, Any]]:
    compared = {}
    for name, results in others.items():
        alike = [other for other in results if _comparable(scored, other)]
        if alike:
            compared[name] = _difference(scored, alike[-1])
    return compared


def _comparable(one: ScoredDataset, other: ScoredDataset) -> bool:
    """Say whether two results are of one text, scored and searched alike."""
    first, second = one.evaluated, other.evaluated
    return (
        first.name == second.name
        and first.result.manifest_sha256 == second.result.manifest_sha256
        and one.normalizer.as_record() == other.normalizer.as_record()
        and first.result.decoding.num_beams == second.result.decoding.num_beams
    )


def _difference(merged: ScoredDataset, other: ScoredDataset) -> dict[str, Any]:
    # Over what both decoded: an utterance that one of them skipped would favour that one.
    mine = {score.index: score.counts(merged.metric) for score in merged.scores}
    theirs = {score.index: score.counts(merged.metric) for score in other.scores}
    shared = mine.keys() & theirs.keys()
    rate = total(mine[index] for index in shared).rate
    other_rate = total(theirs[index] for index in shared).rate
    return {
        merged.metric: other_rate,
        "delta": None if rate is None or other_rate is None else rate - other_rate,
        "utterances": len(shared),
    }
