"""`/metrics` for Prometheus, and the middleware that times requests."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.routes.dependencies import BackendDep
from app.routes.openapi import problems
from app.routes.pools import PROBE
from app.services.metrics import Metrics

router = APIRouter(tags=["service"])
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE"})


@router.get(
    "/metrics",
    response_model=None,
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus's text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(),
    },
)
@PROBE
def get_metrics(request: Request, backend: BackendDep) -> Response:
    """Return merges by status, workers, queue depth and request times."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.expose(backend), media_type=CONTENT_TYPE_LATEST)


class RequestTimer:
    """ASGI middleware that records each request under its route's template, not its path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, and record its status and duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            # Clients could invent methods, and labels are never deleted.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.observe(method, route, status, time.perf_counter() - started_at)
