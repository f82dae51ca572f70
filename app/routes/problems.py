"""Returns every error as an `application/problem+json` document (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.contract.errors import (
    AfluenteError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    Problem,
    sanitize,
)
from app.services.backend import DATABASE_ERRORS, database_problem

MEDIA_TYPE = "application/problem+json"
_LOG = logging.getLogger(__name__)
_TYPE = "urn:afluente:problem:"
_RETRY_AFTER_SECONDS = "5"


class FieldProblem(BaseModel):
    """A problem with the request."""

    param: str | None = Field(examples=["checkpoints[1].uri"])
    message: str


class ProblemDocument(BaseModel):
    """An error; `code` is stable, the texts are for people."""

    type: str = Field(examples=[f"{_TYPE}invalid_request"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["invalid_request"])
    errors: list[FieldProblem] | None = Field(
        None, description="All problems that belong to a field of the request."
    )


def problem_response(
    error: AfluenteError,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """Return the problem document of an error."""
    return _response(
        error.status, error.code, error.title, error.message, _field_problems(error),
        {**_headers(error), **(headers or {})}, extra or {},
    )  # fmt: skip


def add_handlers(app: FastAPI) -> None:
    """Turn all exceptions of the application into problem documents."""
    app.add_exception_handler(AfluenteError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for kind in DATABASE_ERRORS:
        app.add_exception_handler(kind, _on_database_error)
    app.add_exception_handler(Exception, _on_bug)


def _response(
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: list[dict[str, Any]],
    headers: Mapping[str, str],
    extra: Mapping[str, Any],
) -> JSONResponse:
    document = {
        "type": _TYPE + code,
        "title": title,
        "status": status,
        "detail": sanitize(detail),
        "code": code,
        **({"errors": errors} if errors else {}),
        **extra,
    }
    return JSONResponse(document, status, headers, media_type=MEDIA_TYPE)


def _field_problems(error: AfluenteError) -> list[dict[str, Any]]:
    if not error.problems and error.param is None:
        return []
    return [problem.as_dict() for problem in error.as_problems()]


def _headers(error: AfluenteError) -> dict[str, str]:
    if error.status == 401:
        return {"WWW-Authenticate": 'Bearer realm="afluente"'}
    if error.status in {408, 413}:
        return {"Connection": "close"}  # do not wait for the rest of the body
    if error.retryable and error.status in {409, 503}:
        return {"Retry-After": _RETRY_AFTER_SECONDS if error.status == 503 else "1"}
    return {}


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AfluenteError)
    if error.status >= 500:
        _LOG.warning("%s: %s", _asked(request), error.message)
    return problem_response(error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [_parameter_problem(item) for item in error.errors()]
    return problem_response(InvalidRequestError.of(problems))


def _parameter_problem(item: Mapping[str, Any]) -> Problem:
    """Return what is wrong with a query, path or header parameter."""
    _, *path = item["loc"]
    message = str(item["msg"])
    if item["type"] != "missing":
        message += f" (given: {str(item['input'])[:60]!r})."
    return Problem(message, ".".join(str(part) for part in path) or None)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    path = request.scope["path"][:200]
    if error.status_code == 404:
        return problem_response(NotFoundError(f"{path} does not exist; see /docs."), headers)
    if error.status_code == 405:
        known = ", ".join(_allowed_methods(request))
        # The pages of /docs are not in the schema, and their files have no such header.
        headers["Allow"] = known or headers.get("Allow") or "GET, HEAD"
        detail = f"{request.method[:20]} is not allowed on {path}; use {headers['Allow']}."
        title = "The method is not allowed"
        return _response(405, "method_not_allowed", title, detail, [], headers, {})
    return _response(
        error.status_code, "refused", "Request refused", str(error.detail), [], headers, {}
    )


def _asked(request: Request) -> str:
    """Return the request's method and path for the log, shortened and on one line."""
    return f"{request.method[:20]} {request.scope['path'][:200]!a}"


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes on the path (Starlette's Allow has only one route's)."""
    paths = request.app.openapi()["paths"]
    found = [paths[path] for path in paths if compile_path(path)[0].match(request.scope["path"])]
    return sorted({method.upper() for operations in found for method in operations})


async def _on_database_error(request: Request, error: Exception) -> JSONResponse:
    problem = database_problem(request.app.state.backend, error)
    _LOG.error("%s: %s", _asked(request), error, exc_info=problem is None)
    return problem_response(problem or _internal())


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    # The server logs the traceback; the client must not see it.
    return problem_response(_internal())


def _internal() -> InternalError:
    return InternalError("The service failed on this request; its log has the reason.")
