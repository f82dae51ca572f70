"""The API as an ASGI application: `uvicorn app.main:app`, or `create_app` with settings.

Prefer `afluente api`: uvicorn puts the working directory first on the path, and would import
another folder `app` from there.
"""

from __future__ import annotations

from app.isolation import isolate  # isort: split

isolate()

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline

from app.contract.settings import Settings
from app.routes import (
    artifacts,
    evaluations,
    events,
    health,
    merges,
    methods,
    metrics,
    model_card,
    studies,
    wer,
)
from app.routes.dependencies import authorize, refuse_unknown_query
from app.routes.openapi import DESCRIPTION, describe, name_operation
from app.routes.problems import add_handlers
from app.services.access import AccessControl
from app.services.backend import open_backend
from app.services.health import versions
from app.services.metrics import Metrics
from app.services.wakeups import Wakeups

_GUARDED = (
    merges,
    events,
    artifacts,
    model_card,
    wer,
    evaluations,
    studies,
    methods,
    metrics,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; it connects to database and broker at startup."""
    chosen = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend = await asyncio.to_thread(open_backend, chosen)
        app.state.backend = backend
        app.state.access = AccessControl(chosen, backend.engine)
        app.state.wakeups = Wakeups(backend.queue)
        waking = asyncio.create_task(app.state.wakeups.run())
        try:
            yield
        finally:
            waking.cancel()
            with suppress(asyncio.CancelledError):
                await waking
            backend.close()

    # Like FastAPI(), but serves the files of /docs itself: many networks cannot reach a CDN.
    app = FastAPIOffline(
        redoc_url=None,
        static_url="/docs-assets",
        title="Afluente",
        version=versions()["version"],
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=name_operation,
    )
    for module in _GUARDED:
        rules = [Depends(authorize), Depends(refuse_unknown_query)]
        app.include_router(module.router, dependencies=rules)
    app.include_router(health.router)
    app.state.metrics = Metrics()
    app.add_middleware(metrics.RequestTimer, metrics=app.state.metrics)
    add_handlers(app)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


def __getattr__(name: str) -> FastAPI:
    """Create `app.main:app` on first access, so that importing `create_app` does not."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = create_app()
    return cast("FastAPI", globals()["app"])
