"""Builds the document of `GET /merges/{id}/wer` from stored transcripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.contract.evaluation import EvaluatedDataset, NormalizerName, UtteranceResult
from app.reports.averages import average, real_time_factor
from app.reports.comparison import comparable_averages, compare
from app.reports.scored import ScoredDataset, score_dataset
from app.reports.scoring import sentence_error_rate, total


@dataclass(frozen=True)
class ScoredSystems:
    """The scored results of a merge, and of other systems in display order; oldest first."""

    merge: tuple[ScoredDataset, ...]
    others: Mapping[str, tuple[ScoredDataset, ...]]


def score_systems(
    datasets: Sequence[EvaluatedDataset],
    systems: Mapping[str, Sequence[EvaluatedDataset]],
    normalizer: NormalizerName | None = None,
) -> ScoredSystems:
    """Return the scored results, with each dataset's own normaliser or the one given."""

    def scored(results: Sequence[EvaluatedDataset]) -> tuple[ScoredDataset, ...]:
        return tuple(score_dataset(evaluated, normalizer) for evaluated in results)

    return ScoredSystems(
        scored(datasets), {name: scored(results) for name, results in systems.items()}
    )


def build_wer(
    merge_id: str,
    status: str,
    datasets: Sequence[EvaluatedDataset],
    systems: Mapping[str, Sequence[EvaluatedDataset]],
    *,
    normalizer: NormalizerName | None = None,
) -> dict[str, Any]:
    """Return the JSON document: datasets and averages of the merge and of other systems.

    `datasets` are the merge's results, oldest first; `systems` has those of the base, the experts
    and other merges by name, in display order. `normalizer` replaces each dataset's own. Rates are
    fractions, or None without reference words.
    """
    return document_of(merge_id, status, score_systems(datasets, systems, normalizer))


def document_of(merge_id: str, status: str, scored: ScoredSystems) -> dict[str, Any]:
    """Return the document of `build_wer` for scored results."""
    return {
        "merge_id": merge_id,
        "status": status,
        "datasets": [{**_describe(one), **_compared(one, scored.others)} for one in scored.merge],
        "averages": average(one.rate for one in scored.merge),
        "systems": {
            name: {
                "datasets": [_describe(one) for one in results],
                "averages": comparable_averages(scored.merge, results),
            }
            for name, results in scored.others.items()
        },
    }


def _compared(
    scored: ScoredDataset, others: Mapping[str, Sequence[ScoredDataset]]
) -> dict[str, Any]:
    differences, reasons = compare(scored, others)
    return {"compared_with": differences, "not_compared_with": reasons}


def _describe(scored: ScoredDataset) -> dict[str, Any]:
    result = scored.evaluated.result
    words = total(score.words for score in scored.scores)
    characters = total(score.characters for score in scored.scores)
    return {
        "name": scored.evaluated.name,
        "group": scored.evaluated.group,
        "status": result.status,
        "language": result.language,
        "detected_languages": _detected_languages(result.utterances),
        "metric": scored.metric,
        "wer": words.rate,
        "cer": characters.rate,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "hits": words.hits,
        "reference_words": words.reference_units,
        "characters": {
            **characters.as_dict(),
            "reference_characters": characters.reference_units,
        },
        "utterances": len(scored.scores),
        "sentence_error_rate": sentence_error_rate(scored.scores, scored.metric),
        "ci95": scored.interval,
        "audio_seconds": round(scored.audio_seconds, 3),
        "decode_seconds": round(scored.decode_seconds, 3),
        "rtfx": real_time_factor(scored.audio_seconds, scored.decode_seconds),
        "normalizer": scored.normalizer.as_record(),
        "decoding": result.decoding.model_dump(),
        "hallucinations": scored.hallucinations,
        "warnings": _warnings(scored),
        "manifest_sha256": result.manifest_sha256,
    }


def _detected_languages(utterances: Sequence[UtteranceResult]) -> dict[str, int]:
    """Return how many utterances the model detected each language in, the most frequent first."""
    found = sorted(one.detected_language for one in utterances if one.detected_language)
    return dict(Counter(found).most_common())


def _warnings(scored: ScoredDataset) -> dict[str, Any]:
    rates = [score.counts(scored.metric).rate for score in scored.scores]
    return {
        "empty_hypotheses": sum(
            bool(score.reference) and not score.hypothesis for score in scored.scores
        ),
        "wer_above_one": sum(rate is not None and rate > 1 for rate in rates),
        "compression_ratio_above_2.4": scored.loops,
        "audio": [warning.model_dump() for warning in scored.evaluated.result.audio_warnings],
        "skipped": [skipped.model_dump() for skipped in scored.evaluated.result.skipped],
    }
