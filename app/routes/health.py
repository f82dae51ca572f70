"""`/healthz`, `/readyz`, `/version`: for probes, without API key."""

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
    """Report that the process is alive."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=None,
    responses={
        200: {
            "description": "All checks passed.",
            "content": {
                "application/json": {
                    "example": {
                        "status": "ready",
                        "checks": {"database": {"ok": True, "detail": "sqlite responds."}},
                    }
                }
            },
        },
        503: problem(503),
    },
)
@PROBE
def get_readiness(backend: BackendDep) -> JSONResponse:
    """Return whether the service can merge.

    Checks that the database's tables can be read, the broker responds, the disks can be written,
    and a worker was seen recently. Responds within seconds even if a check hangs.
    """
    checks = backend.readiness.outcomes()
    failures = health.describe_failures(checks)
    if not failures:
        return JSONResponse({"status": "ready", "checks": checks})
    return problem_response(NotReadyError(f"Not ready. {failures}"), extra={"checks": checks})


@router.get("/version")
async def get_version() -> dict[str, str]:
    """Return the versions of the service and of Python."""
    return health.versions()
