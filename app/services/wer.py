"""The error rates of a merge, from its evaluations' transcripts so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Condition
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache, cached

from app.contract.errors import NotFoundError
from app.contract.evaluation import EvaluatedDataset, NormalizerName
from app.services.backend import Backend
from app.services.merges import find as find_merge
from app.services.pages import decode_offset_token, encode_token
from app.services.presentation import Row, evaluation_summary
from app.services.results import CurrentResults, current_results
from app.services.selection import MERGE, standings
from app.sources.dataset_queries import split_query
from app.sources.schemes.hf import dataset_of
from app.storage import evaluations

if TYPE_CHECKING:
    from app.reports.exports import ExportFormat, Side
    from app.reports.wer import ScoredSystems

# Cache sizes: documents are small, the scores for the HTML page are large.
_MOST_DOCUMENTS = 256
_MOST_BYTES = 100_000_000


def report(
    backend: Backend,
    merge_id: str,
    *,
    normalizer: NormalizerName | None = None,
    evaluation_id: str | None = None,
) -> dict[str, Any]:
    """Return the document of `GET /merges/{id}/wer`; NotFoundError if unknown.

    `normalizer` replaces each dataset's own.
    """
    current = current_results(backend, merge_id, evaluation_id)
    return _document(merge_id, current, normalizer) | {
        "evaluation": _asked(backend, merge_id, evaluation_id, current.stored)
    }


def scored_report(
    backend: Backend,
    merge_id: str,
    *,
    normalizer: NormalizerName | None = None,
    evaluation_id: str | None = None,
) -> tuple[dict[str, Any], ScoredSystems]:
    """Return the document of `report`, and the scores it was made from."""
    current = current_results(backend, merge_id, evaluation_id)
    document = _document(merge_id, current, normalizer) | {
        "evaluation": _asked(backend, merge_id, evaluation_id, current.stored)
    }
    return document, _scored(merge_id, current, normalizer)


def _key(
    merge_id: str, current: CurrentResults, normalizer: NormalizerName | None
) -> tuple[object, ...]:
    return (merge_id, normalizer, current.key)


# With a Condition, a request waits for another that computes the same key.
@cached(LRUCache(maxsize=_MOST_DOCUMENTS), key=_key, condition=Condition())
def _document(
    merge_id: str, current: CurrentResults, normalizer: NormalizerName | None
) -> dict[str, Any]:
    from app.reports.wer import document_of  # the scorers are slow to import

    return document_of(merge_id, current.status, _scored(merge_id, current, normalizer))


def _size(scored: ScoredSystems) -> int:
    """Return the approximate size of the scores in bytes."""
    results = [one for some in (scored.merge, *scored.others.values()) for one in some]
    texts = sum(len(one.reference) + len(one.hypothesis) for r in results for one in r.scores)
    return 1_000 + 1_500 * sum(len(one.scores) for one in results) + 10 * texts


@cached(LRUCache(maxsize=_MOST_BYTES, getsizeof=_size), key=_key, condition=Condition())
def _scored(
    merge_id: str, current: CurrentResults, normalizer: NormalizerName | None
) -> ScoredSystems:
    from app.reports.wer import score_systems

    systems = current.systems
    own = systems.pop(MERGE, [])
    return score_systems(own, systems, normalizer)


def _asked(
    backend: Backend, merge_id: str, evaluation_id: str | None, stored: Sequence[Any]
) -> dict[str, Any]:
    """Return the given evaluation, or the newest, with the datasets of all evaluations."""
    row = find_merge(backend, merge_id)
    found = evaluations.of_merge(backend.engine, merge_id)
    found = [one for one in found if evaluation_id in {None, one["id"]}]
    summary = evaluation_summary(row, found[0] if found else None).model_dump(mode="json")
    sets = standings(found, stored)
    names = [one["name"] for one in sets]
    if not found and row["request"].get("evaluation"):
        names = [one["name"] for one in row["request"]["evaluation"]["datasets"]]
    return {
        **{field: summary[field] for field in ("id", "status", "gate")},
        "datasets": names,
        "sets": sets,
    }


def report_csv(document: dict[str, Any]) -> str:
    """Return the document of `report` as CSV."""
    from app.reports.spreadsheet import render_csv

    return render_csv(document)


@dataclass(frozen=True)
class Selection:
    """Selects utterances: one system's, of one dataset or of all."""

    system: str = MERGE
    dataset: str | None = None
    evaluation_id: str | None = None
    normalizer: NormalizerName | None = None


def utterances(
    backend: Backend, merge_id: str, selection: Selection, start: int = 0, stop: int | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Return (entries from `start` up to `stop`, total number of entries).

    An entry has the reference, the hypothesis, the counts and the alignment of one utterance.
    NotFoundError for a system or a dataset without results, naming those with results.
    """
    entries: list[dict[str, Any]] = []
    position = 0
    for evaluated in _select(backend, merge_id, selection):
        count = len(evaluated.result.utterances)
        first = max(start - position, 0)
        last = count if stop is None else min(stop - position, count)
        if first < last:
            entries += _entries(_part(evaluated, first, last), selection.normalizer)
        position += count
    return entries, position


def utterance_page(
    backend: Backend,
    merge_id: str,
    selection: Selection,
    *,
    page_size: int = 100,
    page_token: str | None = None,
) -> dict[str, Any]:
    """Return a page of utterances: `{"data": [...], "next_page_token": ...}`."""
    start = decode_offset_token(page_token)
    stop = start + page_size
    entries, count = utterances(backend, merge_id, selection, start, stop)
    return {"data": entries, "next_page_token": encode_token(stop) if stop < count else None}


def export(found: Sequence[dict[str, Any]], form: ExportFormat, side: Side) -> tuple[str, str]:
    """Return (media type, text) of utterances in another tool's format."""
    from app.reports.exports import EXPORTS

    chosen = EXPORTS[form]
    return chosen.media_type, chosen.write(found, side)


def eval_results(
    backend: Backend,
    merge_id: str,
    *,
    normalizer: NormalizerName | None = None,
    evaluation_id: str | None = None,
) -> str:
    """Return the rates on datasets of the hub, for a model's `.eval_results/*.yaml`.

    NotFoundError if no result is of a dataset of the hub, naming the others.
    """
    from app.reports.eval_results import HubResult, render_eval_results

    current = current_results(backend, merge_id, evaluation_id)
    rows = current.chosen.get(MERGE, [])
    scored = _scored(merge_id, current, normalizer).merge
    found = [
        HubResult(
            one, *place, day=datetime.fromtimestamp(row["created_at"], UTC).date().isoformat()
        )
        for row, one in zip(rows, scored, strict=True)
        if (place := _place_on_hub(row))
    ]
    if not found:
        names = ", ".join(dict.fromkeys(str(row["dataset"]) for row in rows)) or "none yet"
        raise NotFoundError(
            "An entry of .eval_results names a dataset of the hub (hf://datasets/organisation/name)."
            f" No result is of one; sets with results: {names}."
        )
    return render_eval_results(found)


def _place_on_hub(row: Row) -> tuple[str, str | None, str | None, str | None] | None:
    """Return repository, revision, config and split of a result's dataset, if it is of the hub."""
    uris = {one["name"]: one["uri"] for one in row["spec"]["datasets"]}
    uri = uris.get(row["dataset"], "")
    if not uri.lower().startswith("hf:"):
        return None
    bare, query = split_query(uri)
    place = dataset_of(bare)
    return None if place is None else (*place, query.config, query.split)


def _part(evaluated: EvaluatedDataset, first: int, last: int) -> EvaluatedDataset:
    """Return the result with only these utterances, so that only they are scored."""
    result = evaluated.result
    part = result.model_copy(update={"utterances": result.utterances[first:last]})
    return evaluated.model_copy(update={"result": part})


def _entries(
    evaluated: EvaluatedDataset, normalizer: NormalizerName | None
) -> list[dict[str, Any]]:
    from app.reports.alignments import aligned_texts
    from app.reports.scored import score_dataset

    scored = score_dataset(evaluated, normalizer)
    return [
        {
            "dataset": evaluated.name,
            **utterance.model_dump(mode="json"),
            "normalized": {"reference": score.reference, "hypothesis": score.hypothesis},
            "metric": scored.metric,
            scored.metric: score.counts(scored.metric).rate,
            **score.counts(scored.metric).as_dict(),
            "alignment": aligned_texts(
                score.reference, score.hypothesis, score.alignment, scored.metric
            ),
        }
        for utterance, score in zip(scored.evaluated.result.utterances, scored.scores, strict=True)
    ]


def _select(backend: Backend, merge_id: str, selection: Selection) -> list[EvaluatedDataset]:
    systems = current_results(backend, merge_id, selection.evaluation_id).systems
    if not systems and selection.system == MERGE and selection.dataset is None:
        return []  # nothing has been decoded yet
    results = systems.get(selection.system)
    if results is None:
        known = ", ".join(systems) or "none yet"
        raise NotFoundError(f'No results for the system "{selection.system}". Known: {known}.')
    chosen = [one for one in results if selection.dataset in {None, one.name}]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.name for one in results))
        raise NotFoundError(f'No results for the dataset "{selection.dataset}". Known: {known}.')
    return chosen
