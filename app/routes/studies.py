"""`/studies`: submit, plan, list, get, cancel, extend, delete; trials and table."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from app.contract.states import MergeStatus
from app.contract.studies import StudyRequest
from app.routes.bodies import Document
from app.routes.dependencies import BackendDep, CallerDep
from app.routes.negotiation import preferred
from app.routes.openapi import body_of, problems
from app.routes.pools import CHANGE, SCORING, SUBMISSION, pool_for
from app.routes.wer import page_headers
from app.services import studies, study_table
from app.services.resources import StudyPage, StudyPlanResource, StudyResource, TrialPage
from app.services.studies import Extension

router = APIRouter(prefix="/studies", tags=["studies"])
_PageToken = Annotated[
    str | None, Query(max_length=500, description="`next_page_token` of the page before.")
]
_FORMS = {
    "application/json": "json",
    "text/html": "html",
    "text/csv": "csv",
    "text/markdown": "markdown",
    "application/x-latex": "latex",
}
_VIEWS = {"application/json": "json", "text/html": "html"}
_TEXT = {"schema": {"type": "string"}}


@router.post(
    "",
    status_code=202,
    responses={
        200: {
            "model": StudyResource | StudyPlanResource,
            "description": "With `dry_run`, what the study would do; otherwise the study that was "
            "created before with this Idempotency-Key.",
        },
        202: {"model": StudyResource, "description": "Queued; `Location` has its URL."},
        **problems(408, 409, 410, 413, 415),
    },
    response_model=None,
    openapi_extra=body_of(StudyRequest),
)
async def create_study(
    backend: BackendDep,
    caller: CallerDep,
    document: Document,
    dry_run: Annotated[
        bool, Query(description="Check the request and return its cost without queueing it.")
    ] = False,
) -> Response:
    """Find the merge to ship: try many, choose on development sets, measure on test sets."""
    study = await SUBMISSION.run(studies.parse, backend, document)
    pool = pool_for(study.request.uris)
    if dry_run:
        plan = await pool.run(studies.plan, backend, study)
        return JSONResponse(plan.model_dump(mode="json"))
    resource, is_new = await pool.run(studies.submit, backend, study, caller)
    headers = {"Location": resource.links["self"]}
    return JSONResponse(resource.model_dump(mode="json"), 202 if is_new else 200, headers)


@router.get("", responses=problems())
def list_studies(
    backend: BackendDep,
    status: Annotated[MergeStatus | None, Query(description="Only with this status.")] = None,
    name: Annotated[
        str | None, Query(max_length=200, description="Only with exactly this name.")
    ] = None,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
    page_token: _PageToken = None,
) -> StudyPage:
    """List studies, newest first."""
    return studies.list_page(
        backend, status=status, name=name, page_size=page_size, page_token=page_token
    )


@router.get(
    "/{study_id}",
    response_model=None,
    responses={
        200: {
            "model": StudyResource,
            "description": "The study; in a browser, its page.",
            "content": {"text/html": _TEXT},
        },
        **problems(404),
    },
)
@SCORING
def get_study(request: Request, backend: BackendDep, study_id: str) -> Response:
    """Return a study: its budget, the best trial so far, and the outcome."""
    if preferred(request.headers.get("accept", ""), _VIEWS) == "html":
        return _page(backend, study_id)
    resource = studies.get(backend, study_id)
    return JSONResponse(resource.model_dump(mode="json"), headers={"Vary": "Accept"})


@router.get("/{study_id}/trials", responses=problems(404))
def list_trials(
    backend: BackendDep,
    study_id: str,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: _PageToken = None,
) -> TrialPage:
    """List a study's trials, in the order in which they were chosen."""
    return studies.trial_page(backend, study_id, page_size=page_size, page_token=page_token)


@router.get(
    "/{study_id}/table",
    response_model=None,
    responses={
        200: {
            "description": "Systems by sets, with averages, intervals and significance.",
            "content": {"application/json": {"schema": {"type": "object"}}}
            | {form: _TEXT for form in _FORMS if form != "application/json"},
        },
        **problems(404),
    },
)
@SCORING
def get_table(
    request: Request,
    backend: BackendDep,
    study_id: str,
    format: Annotated[
        Literal["json", "csv", "markdown", "latex", "html"] | None,
        Query(description="Default: by the Accept header, else JSON."),
    ] = None,
) -> Response:
    """Return the study's table, on the development and on the test sets."""
    form = format or preferred(request.headers.get("accept", ""), _FORMS)
    if form == "html":
        return _page(backend, study_id)
    headers = {"Vary": "Accept"}
    if form == "json":
        return JSONResponse(study_table.table(backend, study_id), headers=headers)
    text = study_table.table_as(backend, study_id, form)
    if form == "csv":
        headers["Content-Disposition"] = f'attachment; filename="{study_id}.csv"'
        return Response(text, headers=headers, media_type="text/csv")
    media = {"markdown": "text/markdown", "latex": "application/x-latex"}[form]
    return PlainTextResponse(text, headers=headers, media_type=media)


@router.post("/{study_id}/cancel", status_code=202, responses=problems(404, 409))
@CHANGE
def cancel_study(backend: BackendDep, study_id: str) -> StudyResource:
    """Cancel a study that has not ended; safe to repeat."""
    return studies.cancel(backend, study_id)


@router.post(
    "/{study_id}/extend",
    status_code=202,
    responses={
        202: {"model": StudyResource, "description": "The study goes on with the new budget."},
        **problems(404, 408, 409, 413, 415),
    },
    response_model=None,
    openapi_extra=body_of(Extension),
)
async def extend_study(backend: BackendDep, study_id: str, document: Document) -> Response:
    """Give a study a larger budget: the new totals. One that has ended goes on."""
    await run_in_threadpool(studies.find, backend, study_id)
    extension = studies.parse_extension(document)
    resource: Any = await CHANGE.run(studies.extend, backend, study_id, extension)
    return JSONResponse(resource.model_dump(mode="json"), 202)


@router.delete(
    "/{study_id}", status_code=204, responses=problems(404, 409), response_class=Response
)
@CHANGE
def delete_study(backend: BackendDep, study_id: str) -> None:
    """Delete an ended study with its trials and events; the merges that it made stay."""
    studies.delete(backend, study_id)


def _page(backend: BackendDep, study_id: str) -> Response:
    page, policy = study_table.page(backend, study_id)
    return HTMLResponse(page, headers={"Vary": "Accept"} | page_headers(policy))
