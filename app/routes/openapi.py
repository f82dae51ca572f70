"""Completes the OpenAPI document: bodies, error responses, examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.contract.evaluation import EvaluationSpec
from app.contract.requests import MergeRequest
from app.contract.studies import StudyRequest
from app.routes.problems import MEDIA_TYPE, ProblemDocument
from app.services.studies import Extension
from app.sources.schemes import forms

DESCRIPTION = """
Merges fine-tuned Whisper checkpoints into one model, and measures the merge's word error rate;
other Hugging Face models merge too, without error rates. `POST /merges` queues a merge; follow its
`events`, then fetch its `artifacts` and its `wer`. `POST /studies` tries many merges, and says
which one to ship. Every error is an RFC 9457 problem document with a stable `code`.
"""
TAGS = [
    {"name": "merges", "description": "Merging checkpoints into one model."},
    {"name": "artifacts", "description": "The merged checkpoint's files."},
    {"name": "error rates", "description": "Evaluations and their results."},
    {"name": "studies", "description": "Which merge to ship: many tried, judged and compared."},
    {"name": "methods", "description": "The merge methods."},
    {"name": "service", "description": "Health, readiness, metrics, version."},
]
_REASONS = {
    400: "The Host header is invalid, or the body cannot be read.",
    401: "An API key is required.",
    403: "The API key lacks the scope, the call is not local, or it is from another origin's page.",
    404: "The resource does not exist.",
    408: "The body did not arrive in time.",
    409: "The resource's state does not allow this.",
    410: "The resource that was created with this Idempotency-Key has been deleted.",
    413: "The body is too large.",
    415: "The media type is not supported.",
    416: "The range cannot be served.",
    422: "The request is invalid; `errors` lists all problems.",
    503: "The service is not ready, or busy; try again.",
}
_EXAMPLE = {
    "type": "urn:afluente:problem:invalid_request",
    "title": "The request is not valid",
    "status": 422,
    "detail": 'parameters.betta: boosted_tsv_m has no parameter "betta". Did you mean "beta"?',
    "code": "invalid_request",
    "errors": [
        {
            "param": "parameters.betta",
            "message": 'boosted_tsv_m has no parameter "betta". Did you mean "beta"?',
        }
    ],
}
_EVALUATION_EXAMPLE = {
    "datasets": [
        {
            "name": "parliament-test",
            "uri": "file:///data/eval/parliament.jsonl",
            "group": "in_domain",
        }
    ],
    "language": "pt",
    "normalizer": "portuguese",
    "compare_with": ["base", "checkpoints"],
    "gate": {"max_wer": {"parliament-test": 0.1}, "max_regression": 0.01},
}
_REFERENCE = "#/components/schemas/{model}"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return a route's error responses: these and those that every route has."""
    return {status: problem(status) for status in sorted({400, 401, 403, 422, 503, *statuses})}


def problem(status: int) -> dict[str, Any]:
    """Return the description of an error response with this status."""
    # A reference instead of `model`, for which FastAPI would build a validator per route.
    content: dict[str, Any] = {"schema": {"$ref": _REFERENCE.format(model="ProblemDocument")}}
    if status == 422:
        content["example"] = _EXAMPLE
    return {"description": _REASONS[status], "content": {MEDIA_TYPE: content}}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose body is this model, in JSON or YAML."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    example = _example_of(model)
    content = {"schema": schema, "example": example}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": content, "application/yaml": content},
        }
    }


def _example_of(model: type[BaseModel]) -> dict[str, Any]:
    if model is EvaluationSpec:
        return _EVALUATION_EXAMPLE
    extra: Any = model.model_config.get("json_schema_extra")
    example: dict[str, Any] = extra["examples"][0]
    return example


def name_operation(route: APIRoute) -> str:
    """Return the operation's id: the function's name, which is unique."""
    return route.name


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, built once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=TAGS,
        )
        _add_models(document)
        _replace_default_refusals(document)
        app.openapi_schema = document
    return app.openapi_schema


def _add_models(document: dict[str, Any]) -> None:
    schemas = document["components"].setdefault("schemas", {})
    for model in (MergeRequest, EvaluationSpec, StudyRequest, Extension, ProblemDocument):
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    schemas["CheckpointRef"]["properties"]["uri"]["description"] += f" Written as {forms()}."


def _replace_default_refusals(document: dict[str, Any]) -> None:
    """Replace FastAPI's default description of a 422 by ours."""
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = problem(422)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
