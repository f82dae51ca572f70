"""The error rates of a merge as one HTML page."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from app.contract.evaluation import EvaluationSpec, NormalizerName
from app.contract.identifiers import MERGE as MERGE_PREFIX
from app.contract.identifiers import is_id
from app.reports.names import label_of, names_of
from app.services import wer
from app.services.backend import Backend
from app.services.health import versions
from app.services.merges import find as find_merge
from app.services.merges import get as get_merge
from app.services.peers import find_peers
from app.services.selection import MERGE
from app.storage import evaluations, merges

if TYPE_CHECKING:
    from app.reports.charts import ChartPoint


def report_page(
    backend: Backend,
    merge_id: str,
    *,
    normalizer: NormalizerName | None = None,
    evaluation_id: str | None = None,
) -> tuple[str, str]:
    """Return the page and its Content-Security-Policy; arguments as for `wer.report`."""
    from app.reports.layout import content_security_policy
    from app.reports.page import Subject, render_page

    document, scored = wer.scored_report(
        backend, merge_id, normalizer=normalizer, evaluation_id=evaluation_id
    )
    systems = list(document["systems"])
    subject = Subject(
        merge=get_merge(backend, merge_id).model_dump(mode="json"),
        labels=_labels(backend, merge_id, systems),
        specs=_specs(backend, merge_id, evaluation_id),
        peers=_with_distinct_labels(find_peers(backend.engine, merge_id, scored.merge, systems)),
        version=versions()["version"],
    )
    return render_page(document, scored, subject), content_security_policy()


def _labels(backend: Backend, merge_id: str, systems: list[str]) -> dict[str, str]:
    """Return each system's label: this merge by method and λ, others by `names_of`."""
    own = find_merge(backend, merge_id)
    others = {
        system: {**other, "parameters": other["recipe"]["parameters"]}
        for system in systems
        if is_id(system, MERGE_PREFIX) and (other := merges.get(backend.engine, system))
    }
    labels = {MERGE: label_of(own["method"], own["recipe"]["parameters"])}
    labels |= {system: system for system in systems if system not in others}
    return labels | names_of(others, labels)


def _specs(backend: Backend, merge_id: str, evaluation_id: str | None) -> list[dict[str, object]]:
    """Return the specs of the evaluations shown, oldest first."""
    rows = evaluations.of_merge(backend.engine, merge_id)
    asked = [row["spec"] for row in reversed(rows) if evaluation_id in {None, row["id"]}]
    return [
        EvaluationSpec.model_validate(spec).model_dump(mode="json", exclude_none=True)
        for spec in asked
    ]


def _with_distinct_labels(points: list[ChartPoint]) -> list[ChartPoint]:
    """Return the points with distinct labels: equal ones are numbered from the newest."""
    often = Counter(point.label for point in points)
    seen: Counter[str] = Counter()
    distinct = []
    for point in points:
        seen[point.label] += 1
        number = f" #{seen[point.label]}" if often[point.label] > 1 else ""
        distinct.append(replace(point, label=point.label + number))
    return distinct
