"""Generates docs/settings.md, docs/methods.md, and tables in other pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.contract.catalogue import CATALOGUE, describe
from app.contract.settings import Settings
from app.sources.architectures.registry import families_table
from app.sources.checkpoint_forms import checkpoint_forms
from app.sources.manifests import forms_table

_GENERATED = "<!-- Written by `make docs`; edit the code it comes from, not this page. -->\n"
_FAMILIES = {
    "parameter_space": "Parameter space",
    "task_vector": "Task vectors",
    "subspace": "Subspaces",
    "calibrated": "Calibrated",
}


def settings_rows() -> Iterator[tuple[str, str, str]]:
    """Yield (environment variable, default as text, description) of every setting."""
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, bool):
            shown = str(default).lower()
        elif isinstance(default, tuple):
            shown = ",".join(str(item) for item in default)
        else:
            shown = "" if default is None else str(default)
        yield f"AFLUENTE_{name.upper()}", shown or "not set", field.description or ""


def settings_page() -> str:
    """Return docs/settings.md."""
    rows = "".join(
        f"| `{variable}` | {f'`{default}`' if default != 'not set' else default} | {text} |\n"
        for variable, default, text in settings_rows()
    )
    return (
        f"# Settings\n\n{_GENERATED}\n"
        "Environment variables. `afluente settings` prints them, and the most common ones are also "
        "options of `afluente up`, `api` and `worker`. Relative paths are relative to the working "
        "directory. An empty variable counts as not set.\n\n"
        f"| variable | default | description |\n| --- | --- | --- |\n{rows}"
    )


def with_forms(page: str) -> str:
    """Return docs/evaluation.md with the current table of the forms of datasets."""
    head, table = page.split("| form |", 1)
    return head + forms_table() + table[table.index("\n\n") + 1 :]


def with_families(page: str) -> str:
    """Return docs/architectures.md with the current table of the families that are decoded."""
    head, table = page.split("| family |", 1)
    return head + families_table() + table[table.index("\n\n") + 1 :]


def with_checkpoint_forms(page: str) -> str:
    """Return docs/checkpoints.md with the current table of the forms of checkpoints."""
    head, table = page.split("| form |", 1)
    return head + checkpoint_forms() + table[table.index("\n\n## ") + 1 :]


def methods_page() -> str:
    """Return docs/methods.md."""
    methods = [describe(method) for method in CATALOGUE.values()]
    index = "".join(
        f"| [`{method['name']}`](#{method['name']}) | {_FAMILIES[method['family']]} "
        f"| {_experts(method)} | {method['base']} | {'yes' if method['weights'] else 'no'} |\n"
        for method in methods
    )
    sections = "".join(_section(method) for method in methods)
    return (
        f"# Merge methods\n\n{_GENERATED}\n"
        "`GET /methods` and `afluente methods` show the same information.\n\n"
        "| method | family | experts | base | weights |\n| --- | --- | --- | --- | --- |\n"
        f"{index}{sections}"
    )


def _section(method: dict[str, Any]) -> str:
    paper = method["paper"]
    source = f"{paper['authors']} ({paper['year']}), [{paper['title']}]({paper['url']})"
    head = f"\n## {method['name']}\n\n**{method['title']}.** {method['summary']}\n\n{source}.\n"
    if method["needs_calibration"]:
        head += "\nNeeds [calibration sets](calibration.md).\n"
    fields = method["parameters"].get("properties", {})
    if not fields:
        return f"{head}\nNo parameters.\n"
    rows = "".join(
        f"| `{name}` | {_kind(field)} | {_default(field)} | {field.get('description', '')} |\n"
        for name, field in fields.items()
    )
    return f"{head}\n| parameter | values | default | meaning |\n| --- | --- | --- | --- |\n{rows}"


def _experts(method: dict[str, Any]) -> str:
    least, most = method["experts"]["least"], method["experts"]["most"]
    return f"{least}-{most}" if most else f"{least} or more"


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "required"
    value = field["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(field: dict[str, Any]) -> str:
    """Return a field's range, such as `number in (0, 1]`, or its choices."""
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"])
    kind = str(field.get("type", "any")).replace("boolean", "true or false")
    low = f"[{field['minimum']}" if "minimum" in field else None
    low = f"({field['exclusiveMinimum']}" if "exclusiveMinimum" in field else low
    high = f"{field['maximum']}]" if "maximum" in field else None
    high = f"{field['exclusiveMaximum']})" if "exclusiveMaximum" in field else high
    return f"{kind} in {low or '(-∞'}, {high or '∞)'}" if low or high else kind
