"""The description of a method in `GET /methods` and in the documentation."""

from __future__ import annotations

from typing import Any

from app.contract.catalogue.method import MethodParameters


def describe(method: type[MethodParameters]) -> dict[str, Any]:
    """Return the method as JSON: traits, paper, and the JSON Schema of its parameters."""
    return {
        "name": method.name,
        "title": method.title,
        "family": method.family,
        "summary": method.summary,
        "paper": method.paper._asdict(),
        "experts": {"least": method.min_experts, "most": method.max_experts},
        "base": method.base,
        "weights": method.uses_weights,
        "needs_calibration": method.needs_calibration,
        "parameters": _schema(method),
    }


def _schema(method: type[MethodParameters]) -> dict[str, Any]:
    schema = method.model_json_schema()
    schema.pop("title", None)
    schema.pop("description", None)
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
    return schema
