"""`/merges`: create, plan, list, get, cancel, retry, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from app.contract.requests import MergeRequest
from app.contract.states import MergeStatus
from app.routes.bodies import Document
from app.routes.dependencies import BackendDep, CallerDep
from app.routes.openapi import body_of, problems
from app.routes.pools import CHANGE, SUBMISSION, pool_for
from app.services import merges
from app.services.resources import MergePage, MergeResource, PlanResource

router = APIRouter(prefix="/merges", tags=["merges"])
_TEXT = r"^[^\x00]*$"


class ListQuery(BaseModel):
    """Which merges to list."""

    status: MergeStatus | None = Field(None, description="Only merges with this status.")
    method: str | None = Field(
        None, max_length=40, pattern=_TEXT, description="Only merges with this method."
    )
    name: str | None = Field(
        None, max_length=200, pattern=_TEXT, description="Only merges with exactly this name."
    )
    page_size: int = Field(20, ge=1, le=100)
    page_token: str | None = Field(
        None, max_length=500, description="`next_page_token` of the previous page."
    )


@router.post(
    "",
    status_code=202,
    responses={
        200: {
            "model": MergeResource | PlanResource,
            "description": "With `dry_run`, the plan; otherwise the merge that was created before "
            "with this Idempotency-Key.",
        },
        202: {"model": MergeResource, "description": "Queued; `Location` has its URL."},
        **problems(408, 409, 410, 413, 415),
    },
    response_model=None,
    openapi_extra=body_of(MergeRequest),
)
async def create_merge(
    backend: BackendDep,
    caller: CallerDep,
    document: Document,
    dry_run: Annotated[
        bool, Query(description="Check the request and return the plan without queueing a merge.")
    ] = False,
) -> Response:
    """Merge checkpoints into one model.

    The checkpoints' configs and tensor headers are read before the response, which lists all
    problems with them.
    """
    parsed = await SUBMISSION.run(merges.parse, backend, document)
    pool = pool_for(parsed.uris)
    if dry_run:
        plan = await pool.run(merges.plan, backend, parsed)
        return JSONResponse(plan.model_dump(mode="json"))
    return accepted(*await pool.run(merges.submit, backend, parsed, caller))


@router.get("", responses=problems())
def list_merges(backend: BackendDep, query: Annotated[ListQuery, Query()]) -> MergePage:
    """List merges, newest first."""
    return merges.list_page(backend, **dict(query))


@router.get("/{merge_id}", responses=problems(404))
def get_merge(backend: BackendDep, merge_id: str) -> MergeResource:
    """Return a merge."""
    return merges.get(backend, merge_id)


@router.post("/{merge_id}/cancel", status_code=202, responses=problems(404, 409))
@CHANGE
def cancel_merge(backend: BackendDep, merge_id: str) -> MergeResource:
    """Cancel a merge that has not ended; safe to repeat."""
    return merges.cancel(backend, merge_id)


@router.post(
    "/{merge_id}/retry",
    status_code=202,
    responses={
        200: {"model": MergeResource, "description": "Created before with this Idempotency-Key."},
        202: {"model": MergeResource, "description": "Queued; `Location` has its URL."},
        **problems(404, 409, 410),
    },
    response_model=None,
)
async def retry_merge(backend: BackendDep, caller: CallerDep, merge_id: str) -> Response:
    """Retry a failed merge as a new merge, which adopts the tensors that were finished."""
    uris = await run_in_threadpool(merges.sources_of, backend, merge_id)
    return accepted(*await pool_for(uris).run(merges.retry, backend, merge_id, caller))


@router.delete(
    "/{merge_id}", status_code=204, responses=problems(404, 409), response_class=Response
)
@CHANGE
def delete_merge(backend: BackendDep, merge_id: str) -> None:
    """Delete an ended merge with its events, evaluations and artifacts."""
    merges.delete(backend, merge_id)


def accepted(merge: MergeResource, is_new: bool) -> Response:
    """Return 202 for a new merge, or 200 for one created before with this Idempotency-Key."""
    headers = {"Location": merge.links["self"]}
    return JSONResponse(merge.model_dump(mode="json"), 202 if is_new else 200, headers)
