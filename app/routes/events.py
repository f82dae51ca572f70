"""`/merges/{id}/events`, `/studies/{id}/events`: Server-Sent Events, or the same as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from app.contract.errors import InvalidRequestError, Problem
from app.routes.dependencies import BackendDep
from app.routes.openapi import problems
from app.services import events
from app.services.backend import Backend
from app.services.resources import EventPage, EventResource

router = APIRouter()
_STREAM = "text/event-stream"
_HIGHEST = 2**31 - 1
_ID = re.compile(r"0{0,20}[0-9]{1,10}")
_EXAMPLE = (
    'id: 1\nevent: status\ndata: {"status":"queued"}\n\n'
    'id: 4\nevent: progress\ndata: {"done":412,"total":1259,"unit":"tensors","fraction":0.3272}\n\n'
    'id: 9\nevent: end\ndata: {"status":"succeeded"}\n\n'
)


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": EventPage,
        "description": "With `Accept: text/event-stream`, the events as they happen, until "
        "`end`; otherwise a page of the events so far.",
        "content": {_STREAM: {"schema": {"type": "string"}, "example": _EXAMPLE}},
    },
    204: {"description": "The stream has ended, and the client has seen all events."},
    **problems(404),
}
_LastEventId = Annotated[
    str | None, Header(description="The last event seen; the stream resumes after it.")
]
_After = Annotated[int, Query(ge=0, le=_HIGHEST, description="Only events with an id above this.")]
_PageSize = Annotated[int, Query(ge=1, le=500, description="Of the JSON response.")]


@router.get("/merges/{merge_id}/events", tags=["merges"], response_model=None, responses=_RESPONSES)
async def get_events(
    request: Request,
    backend: BackendDep,
    merge_id: str,
    last_event_id: _LastEventId = None,
    after: _After = 0,
    page_size: _PageSize = 100,
) -> Response:
    """Follow a merge's status, phases, progress, warnings and evaluations."""
    return await _events(request, backend, merge_id, last_event_id, after, page_size)


@router.get(
    "/studies/{study_id}/events", tags=["studies"], response_model=None, responses=_RESPONSES
)
async def get_study_events(
    request: Request,
    backend: BackendDep,
    study_id: str,
    last_event_id: _LastEventId = None,
    after: _After = 0,
    page_size: _PageSize = 100,
) -> Response:
    """Follow a study's status, phases, progress, warnings and trials."""
    return await _events(request, backend, study_id, last_event_id, after, page_size)


async def _events(
    request: Request,
    backend: Backend,
    topic: str,
    last_event_id: str | None,
    after: int,
    page_size: int,
) -> Response:
    after = max(after, _seen(last_event_id))
    if _STREAM not in request.headers.get("accept", ""):
        page = await run_in_threadpool(
            events.list_page, backend, topic, after=after, page_size=page_size
        )
        return JSONResponse(page.model_dump(mode="json"))
    if await run_in_threadpool(events.is_over, backend, topic, after):
        return Response(status_code=204)  # tells a browser not to connect again
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    following = events.follow(backend, request.app.state.wakeups, topic, after)
    return EventSourceResponse(_encode(following), headers=headers)


def _seen(last_event_id: str | None) -> int:
    if not last_event_id:
        return 0
    # Long texts are not converted: Python refuses more than 4,300 digits.
    if _ID.fullmatch(last_event_id) and int(last_event_id) <= _HIGHEST:
        return int(last_event_id)
    message = f"{last_event_id[:40]!r} is not an event id; ids are whole numbers from 1."
    raise InvalidRequestError.of([Problem(message, "Last-Event-ID")])


async def _encode(following: AsyncIterator[EventResource | None]) -> AsyncIterator[bytes]:
    async for event in following:
        if event is None:
            yield KEEPALIVE_COMMENT
            continue
        data = json.dumps(event.data, ensure_ascii=False, separators=(",", ":"))
        yield format_sse_event(id=str(event.id), event=event.type, data_str=data)
