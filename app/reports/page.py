"""The HTML report of `/wer`: a self-contained page for screen, phone and paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from app.contract.evaluation import UtteranceResult
from app.reports.breakdown import by_duration, by_speaker
from app.reports.changes import changes_against
from app.reports.charts import Bar, ChartPoint, bars, trade_off
from app.reports.comparison import counterpart
from app.reports.error_words import error_words
from app.reports.layout import render
from app.reports.rate_table import MERGE, SIGNIFICANT, Row, rate_rows
from app.reports.rendering import AVERAGE_TITLES
from app.reports.scored import ScoredDataset
from app.reports.wer import ScoredSystems
from app.reports.worst import worst

# Skipped utterances listed per dataset; further ones are only counted.
_MOST_SKIPPED = 50
# Utterances listed per dataset that became worse, and better.
_MOST_CHANGED = 5
_MOST_SPEAKERS = 20
# Files that browsers play, by the ends of their names.
_PLAYABLE = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac")


@dataclass(frozen=True)
class Subject:
    """The page's content besides the rates.

    `merge` is the document of `GET /merges/{id}`, `labels` are the systems' display names, `specs`
    the evaluations' requests, `peers` the other merges in the trade-off.
    """

    merge: Mapping[str, Any]
    labels: Mapping[str, str]
    specs: Sequence[Mapping[str, Any]]
    peers: Sequence[ChartPoint]
    version: str


def render_page(document: Mapping[str, Any], scored: ScoredSystems, subject: Subject) -> str:
    """Return the page for a `/wer` document and the results it was made from."""
    datasets, averages = rate_rows(document, scored)
    points = _points(document, subject)
    return render(
        "wer.html",
        document=document,
        merge=subject.merge,
        labels=subject.labels,
        specs=[json.dumps(spec, indent=2, ensure_ascii=False) for spec in subject.specs],
        recipe=json.dumps(_recipe(subject.merge), indent=2, ensure_ascii=False),
        version=subject.version,
        datasets=datasets,
        averages=averages,
        charts=[(row, _bars(row, subject.labels)) for row in datasets],
        points=points,
        scatter=_scatter(points),
        examples=[(one, worst(one)) for one in scored.merge],
        changed=[
            (one, found)
            for one in scored.merge
            if (found := changes_against(one, scored.others, _experts(subject.merge)))
        ],
        details=[_details(one, scored) for one in scored.merge],
        problems=_problems(document),
        groups=AVERAGE_TITLES,
        significant=SIGNIFICANT,
        most_skipped=_MOST_SKIPPED,
        most_changed=_MOST_CHANGED,
        most_speakers=_MOST_SPEAKERS,
        audio_url=audio_url,
    )  # fmt: skip


def audio_url(scored: ScoredDataset, utterance: UtteranceResult) -> str | None:
    """Return where the utterance's audio is, relative to the page; None if it cannot be played.

    The fragment makes the player begin and end with an utterance that is part of its file.
    """
    evaluation = scored.evaluated.evaluation_id
    if evaluation is None or not utterance.audio.rstrip(")").lower().endswith(_PLAYABLE):
        return None
    query = {"dataset": scored.evaluated.name, "index": utterance.index, "evaluation": evaluation}
    start = utterance.offset_seconds
    part = "" if start is None else f"#t={start:.3f},{start + utterance.audio_seconds:.3f}"
    return f"wer/audio?{urlencode(query)}{part}"


def _bars(row: Row, labels: Mapping[str, str]) -> Markup:
    shown = [
        Bar(
            labels[cell.system],
            cell.rate,
            cell.low,
            cell.high,
            cell.system == MERGE,
            cell.counts.rates if cell.counts else None,
        )
        for cell in row.cells
        if cell.rate is not None
    ]
    # charts.py escapes what it writes.
    return Markup(bars(shown, f"{row.metric} on {row.title}, in percent"))


def _points(document: Mapping[str, Any], subject: Subject) -> list[ChartPoint]:
    """Return the trade-off's points, this merge first; none if it lacks either average."""
    wanted = ("in_domain", "out_of_domain")
    found = []
    for system, results in ((MERGE, document), *document["systems"].items()):
        averages = [results["averages"][group] for group in wanted]
        x, y = (average["macro"] for average in averages)
        if x is not None and y is not None:
            kind = _kind(system, subject.merge)
            intervals = (_interval(average["ci95"]) for average in averages)
            found.append(ChartPoint(subject.labels[system], x, y, kind, *intervals))
        elif system == MERGE:
            return []
    return [*found, *subject.peers]


def _kind(system: str, merge: Mapping[str, Any]) -> str:
    if system in {MERGE, "base"}:
        return system
    return "expert" if system in _experts(merge) else "other"


def _experts(merge: Mapping[str, Any]) -> set[str]:
    return {source["name"] for source in merge["checkpoints"]}


def _interval(found: Mapping[str, Any] | None) -> tuple[float, float] | None:
    return (found["low"], found["high"]) if found else None


def _scatter(points: Sequence[ChartPoint]) -> Markup | None:
    if not points:
        return None
    titles = ("In-domain average", "Out-of-domain average")
    return Markup(trade_off(points, *titles, "Average error rates in percent"))


def _details(scored: ScoredDataset, systems: ScoredSystems) -> dict[str, Any]:
    """Return what the page says of a dataset beyond its rates, the merge beside the base."""
    base = counterpart(scored, systems.others.get("base", ()))
    return {
        "scored": scored,
        "has_base": base is not None,
        "words": error_words(scored, base),
        "parts": [
            ("duration", by_duration(scored, base)),
            ("speaker", by_speaker(scored, base)),
        ],
    }


def _problems(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each system's datasets with warnings or hallucinations."""
    systems = {MERGE: document, **document["systems"]}
    return [
        {"system": system, "dataset": dataset, **dataset["warnings"], **dataset["hallucinations"]}
        for system, results in systems.items()
        for dataset in results["datasets"]
        if any(dataset["warnings"].values()) or dataset["hallucinations"]["words_on_silence"]
    ]


def _recipe(merge: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("method", "parameters", "rules", "seed", "output")
    return {field: merge[field] for field in fields}
