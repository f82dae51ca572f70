"""`/merges/{id}/evaluations`: create, list, get, cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from app.contract.evaluation import EvaluationSpec
from app.routes.bodies import Document
from app.routes.dependencies import BackendDep, CallerDep
from app.routes.openapi import body_of, problems
from app.routes.pools import CHANGE, SUBMISSION, pool_for
from app.services import evaluations, merges
from app.services.resources import EvaluationPage, EvaluationResource

router = APIRouter(prefix="/merges/{merge_id}/evaluations", tags=["error rates"])


@router.post(
    "",
    status_code=202,
    responses={
        200: {
            "model": EvaluationResource,
            "description": "Created before with this Idempotency-Key.",
        },
        202: {"model": EvaluationResource, "description": "Queued; `Location` has its URL."},
        **problems(408, 404, 409, 410, 413, 415),
    },
    response_model=None,
    openapi_extra=body_of(EvaluationSpec),
)
async def create_evaluation(
    backend: BackendDep, caller: CallerDep, merge_id: str, document: Document
) -> Response:
    """Measure the error rates of a finished merge, and of the systems to compare with."""
    await run_in_threadpool(merges.find, backend, merge_id)
    spec = await SUBMISSION.run(evaluations.parse, document)
    evaluation, is_new = await pool_for(spec.uris).run(
        evaluations.submit, backend, merge_id, spec, caller
    )
    headers = {"Location": evaluation.links["self"]}
    return JSONResponse(evaluation.model_dump(mode="json"), 202 if is_new else 200, headers)


@router.get("", responses=problems(404))
def list_evaluations(
    backend: BackendDep,
    merge_id: str,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
    page_token: Annotated[
        str | None, Query(max_length=500, description="`next_page_token` of the page before.")
    ] = None,
) -> EvaluationPage:
    """List the evaluations of a merge, newest first."""
    return evaluations.list_page(backend, merge_id, page_size=page_size, page_token=page_token)


@router.get("/{evaluation_id}", responses=problems(404))
def get_evaluation(backend: BackendDep, merge_id: str, evaluation_id: str) -> EvaluationResource:
    """Return an evaluation; its results are at `/merges/{id}/wer`."""
    return evaluations.get(backend, merge_id, evaluation_id)


@router.post("/{evaluation_id}/cancel", status_code=202, responses=problems(404, 409))
@CHANGE
def cancel_evaluation(backend: BackendDep, merge_id: str, evaluation_id: str) -> EvaluationResource:
    """Cancel an evaluation that has not ended; safe to repeat."""
    return evaluations.cancel(backend, merge_id, evaluation_id)
