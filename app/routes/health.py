"""`/healthz`, `/readyz`, `/version`: open to all, for probes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.contract.errors import NotReadyError
from app.routes.dependencies import BackendDep
from app.routes.openapi import problem
from app.routes.pools import PROBE
from app.routes.problems import problem_response
from app.services import health

router = APIRouter(tags=["service"])


@router.get("/healthz")
async def get_health() -> dict[str, str]:
    """Say that the process is alive."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=None,
    responses={
        200: {
            "description": "Everything is there.",
            "content": {
                "application/json": {
                    "example": {
                        "status": "ready",
                        "checks": {"database": {"ok": True, "detail": "sqlite answers."}},
                    }
                }
            },
        },
        503: problem(503),
    },
)
@PROBE
def get_readiness(backend: BackendDep) -> JSONResponse:
    """Return whether merges can be made.

    That is: the database's tables can be read, the broker answers, the disks can be written, and a
    worker was seen lately that takes jobs. Answers within seconds, whatever hangs.
    """
    checks = backend.readiness.outcomes()
    missing = health.lacks(checks)
    if not missing:
        return JSONResponse({"status": "ready", "checks": checks})
    return problem_response(NotReadyError(f"Not ready. {missing}"), extra={"checks": checks})


@router.get("/version")
async def get_version() -> dict[str, str]:
    """Return the version of the service and of what it runs on."""
    return health.versions()
