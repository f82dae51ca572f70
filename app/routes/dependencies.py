"""Dependencies of routes: the backend, authorisation, the caller."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.contract.errors import InvalidRequestError, Problem
from app.contract.problems import did_you_mean
from app.routes.origins import forwarded_names, host_of, refuse_other_sites
from app.services.access import AccessControl
from app.services.backend import Backend
from app.services.idempotency import Caller

_BEARER = HTTPBearer(
    scheme_name="bearerAuth",
    bearerFormat="afl_...",
    description="An API key, from `afluente keys create`. Required once a key exists.",
    auto_error=False,
)
_READING = frozenset({"GET", "HEAD"})


async def get_backend(request: Request) -> Backend:
    """Return the application's backend (asynchronous, so that it needs no thread)."""
    backend: Backend = request.app.state.backend
    return backend


def authorize(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> None:
    """Require a key with the scope: `read` for GET and HEAD, `write` for the rest."""
    access: AccessControl = request.app.state.access
    host = host_of(request)
    refuse_other_sites(request)
    scope = "read" if request.method in _READING else "write"
    secret = credentials.credentials if credentials else None
    address, _ = request.scope.get("server") or (None, None)
    key = access.identify(secret, scope, (address, host, *forwarded_names(request)))
    request.state.api_key_id = key.id if key else "anonymous"


async def refuse_unknown_query(request: Request) -> None:
    """Raise InvalidRequestError for unknown query parameters.

    A misspelt `dry_run` must not queue a merge.
    """
    if not request.query_params:
        return
    operations = request.app.openapi()["paths"].get(request.scope["route"].path_format, {})
    parameters = operations.get(request.method.lower(), {}).get("parameters", ())
    known = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if unknown:
        raise InvalidRequestError.of([_unknown(name[:40], known) for name in unknown[:20]])


def _unknown(name: str, known: list[str]) -> Problem:
    listed = f" Known: {', '.join(known)}." if known else ""
    return Problem(f"Unknown query parameter.{did_you_mean(name, known)}{listed}", name)


async def get_caller(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Makes the request safe to repeat: the same key and body return the "
            "resource that the first request created. Kept for 24 hours.",
            examples=["5b7c6f0e-3f5a-4f0e-9a57-0d6f4c1f7a11"],
        ),
    ] = None,
) -> Caller:
    """Return the caller's API key and Idempotency-Key."""
    return Caller(request.state.api_key_id, idempotency_key)


BackendDep = Annotated[Backend, Depends(get_backend)]
CallerDep = Annotated[Caller, Depends(get_caller)]
