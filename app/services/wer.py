"""The error rates of a merge, from its evaluations' transcripts so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache, cached

from app.contract.errors import NotFoundError
from app.contract.evaluation import EvaluatedDataset, NormalizerName
from app.services.backend import Backend
from app.services.merges import find as find_merge
from app.services.pages import decode_offset_token, encode_token
from app.services.presentation import evaluation_summary
from app.services.results import CurrentResults, current_results
from app.services.selection import MERGE, standings
from app.storage import evaluations

if TYPE_CHECKING:
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


def utterances_trn(found: Sequence[dict[str, Any]], side: str) -> str:
    """Return one side (`reference` or `hypothesis`) as NIST's trn: `words (speaker-number)`."""
    lines = []
    for entry in found:
        speaker = "".join(c if c.isalnum() else "_" for c in entry["speaker"] or entry["dataset"])
        number = f"{entry['dataset']}_{entry['index']:06d}"
        # Parentheses, braces and semicolons are syntax in this format.
        text = entry["normalized"][side].translate(str.maketrans("(){};", "     "))
        lines.append(f"{' '.join(text.split())} ({speaker}-{number})\n")
    return "".join(lines)


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
