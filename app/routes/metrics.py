"""`/metrics` for Prometheus, and the middleware that times requests."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.routes.dependencies import BackendDep
from app.services.metrics import Metrics

router = APIRouter(tags=["service"])


@router.get(
    "/metrics",
    response_model=None,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_metrics(request: Request, backend: BackendDep) -> Response:
    """Return merges by status, workers, the queue's depth and request times."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.expose(backend), media_type=CONTENT_TYPE_LATEST)


class RequestTimer:
    """ASGI middleware: counts each request under its route's template, never its path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note how it ended."""
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
            seconds = time.perf_counter() - started_at
            self._metrics.observe(scope["method"], route, status, seconds)
