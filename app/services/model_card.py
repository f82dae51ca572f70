"""Model cards in the hub's Markdown format: recipe, inputs, error rates so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from app.contract.catalogue import CATALOGUE
from app.services import wer
from app.services.backend import Backend
from app.services.merges import find
from app.services.presentation import Row, architecture_summary, is_adapter
from app.sources.schemes.hf import model_of


def get(backend: Backend, merge_id: str) -> str:
    """Return the model card of a merge in any status; NotFoundError if unknown."""
    row = find(backend, merge_id)
    return render_card(row, wer.report(backend, merge_id))


def render_card(row: Row, report: Mapping[str, Any]) -> str:
    """Return the model card for a merge's row and its `/wer` document."""
    title = _line(row["name"] or row["id"])
    loading = _loading_adapter if is_adapter(row) else _loading
    parts = [
        f"---\n{_front_matter(row, report, title)}---",
        f"# {title}",
        _introduction(row),
        f"## Inputs\n\n{_inputs(row['sources'])}",
        f"## Recipe\n\n```json\n{json.dumps(row['recipe'], indent=2, ensure_ascii=False)}\n```",
        f"## Word error rate\n\n{_rates(report)}",
        f"## Use\n\n```python\n{loading(architecture_summary(row))}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _loading(architecture: Mapping[str, Any]) -> str:
    """Return the lines of Python that load the artifact."""
    classes = {"model": architecture["model_class"] or "AutoModel"}
    if architecture["processor_class"] is not None:
        classes["processor"] = architecture["processor_class"]
    folder = '"path/to/this/folder"'
    lines = [f"{name} = {kind}.from_pretrained({folder})" for name, kind in classes.items()]
    return "\n".join((f"from transformers import {', '.join(classes.values())}", "", *lines))


def _loading_adapter(architecture: Mapping[str, Any]) -> str:
    """Return the lines of Python that load an artifact that is an adapter."""
    kind = architecture["model_class"] or "AutoModel"
    return "\n".join(
        (
            "from peft import PeftModel",
            f"from transformers import {kind}",
            "",
            f'base = {kind}.from_pretrained("path/to/the/base")',
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        )
    )


def _front_matter(row: Row, report: Mapping[str, Any], title: str) -> str:
    languages = sorted({d["language"] for d in report["datasets"] if d["language"]})
    sources = row["sources"]
    inputs = [sources["base"]] if sources.get("base") else []
    inputs += sources["checkpoints"]
    on_hub = [model for source in inputs if (model := model_of(source["uri"]))]
    architecture = architecture_summary(row)
    speech = ["automatic-speech-recognition"] if architecture["task"] else []
    front = {
        "library_name": "peft" if is_adapter(row) else "transformers",
        **({"pipeline_tag": speech[0]} if speech else {}),
        "tags": [architecture["model_type"], *speech, "merge", "afluente", row["method"]],
        **({"language": languages} if languages else {}),
        **({"base_model": on_hub, "base_model_relation": "merge"} if on_hub else {}),
        **({"model-index": [_model_index(report, title)]} if report["datasets"] else {}),
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _model_index(report: Mapping[str, Any], title: str) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "automatic-speech-recognition"},
            "dataset": {"name": dataset["name"], "type": dataset["name"]},
            "metrics": [{"type": dataset["metric"], "value": round(100 * _rate(dataset), 2)}],
        }
        for dataset in report["datasets"]
        if dataset[dataset["metric"]] is not None
    ]
    return {"name": title, "results": results}


def _introduction(row: Row) -> str:
    method = CATALOGUE.get(row["method"])
    count = len(row["sources"]["checkpoints"])
    kind = architecture_summary(row)["model_type"]
    text = f"A `{kind}` checkpoint merged from {count} by `{row['method']}`"
    if method is not None:
        text += f" ([{method.paper.authors}, {method.paper.year}]({method.paper.url}))"
    state = "" if row["status"] == "succeeded" else f" The merge is {row['status']}."
    return f"{text}.{state}"


def _inputs(sources: Mapping[str, Any]) -> str:
    named = [("base", sources["base"])] if sources.get("base") else []
    named += [("expert", source) for source in sources["checkpoints"]]
    rows = [
        (
            _cell(source["name"]),
            role,
            "" if role == "base" else f"{source['weight']:g}",
            f"`{_cell(source['resolved'] or source['uri'])}`",
            f"`{source['sha256']}`" if source["sha256"] else "not read yet",
        )
        for role, source in named
    ]
    return _table(("Name", "Role", "Weight", "Source", "sha256 of its files"), rows)


def _rates(report: Mapping[str, Any]) -> str:
    systems = list(report["systems"])
    rows = [
        (
            _cell(dataset["name"]),
            dataset["group"],
            dataset["metric"].upper(),
            _percent(_rate(dataset)),
            *(_percent(_compared(dataset, system)) for system in systems),
        )
        for dataset in report["datasets"]
    ]
    if not rows:
        return "Not measured."
    averages = {"merge": report["averages"]} | {
        name: found["averages"] for name, found in report["systems"].items()
    }
    for group, average in report["averages"].items():
        if average.get("datasets"):
            macros = [_percent(found.get(group, {}).get("macro")) for found in averages.values()]
            rows.append((f"macro average: {group}", "", "", *macros))
    note = "" if report["status"] in {"succeeded", "partial"} else f" ({report['status']})"
    headings = ("Dataset", "Group", "Metric", "This model", *(_cell(system) for system in systems))
    return f"In percent{note}.\n\n{_table(headings, rows)}"


def _rate(dataset: Mapping[str, Any]) -> Any:
    return dataset[dataset["metric"]]


def _compared(dataset: Mapping[str, Any], system: str) -> Any:
    """Return another system's rate, or None if it is not comparable."""
    return dataset["compared_with"].get(system, {}).get(dataset["metric"])


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.2f}"


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _line(text: str) -> str:
    """Return free text as one line, escaped for Markdown."""
    words = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in words)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")
