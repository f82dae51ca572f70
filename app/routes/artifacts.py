"""`/merges/{id}/artifacts`: the list, each file, and all of them as one tar."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.routes.dependencies import BackendDep
from app.routes.openapi import problems
from app.routes.problems import problem_response
from app.routes.ranges import (
    UnsatisfiableRange,
    is_unmodified,
    repr_digest,
    requested_ranges,
    strong_etag,
)
from app.services import archive, artifacts
from app.services.resources import ArtifactPage

router = APIRouter(prefix="/merges/{merge_id}", tags=["artifacts"])
_HEADERS = {
    "Accept-Ranges": "bytes",
    # Bytes must arrive as they are: their digest is checked.
    "Cache-Control": "private, no-transform",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def _responses(*media_types: str, several: str | None = None) -> dict[int | str, dict[str, Any]]:
    content = dict.fromkeys(media_types, _BINARY)
    return {
        200: {"description": "All bytes.", "content": content},
        206: {
            "description": "The bytes of `Range`.",
            "content": {**content, **({several: _BINARY} if several else {})},
        },
        304: {"description": "As `If-None-Match` has it."},
        **problems(404, 416),
    }


_FILE = _responses(
    "application/octet-stream", "application/json", "text/plain", several="multipart/byteranges"
)
_TAR = _responses("application/x-tar")


@router.get("/artifacts", responses=problems(404))
def list_artifacts(backend: BackendDep, merge_id: str) -> ArtifactPage:
    """List the merged checkpoint's files; none before the merge has succeeded."""
    return artifacts.list_all(backend, merge_id)


@router.get("/artifacts/{name}", responses=_FILE, response_model=None, response_class=FileResponse)
def get_artifact(request: Request, backend: BackendDep, merge_id: str, name: str) -> Response:
    """Download a file; `Range` resumes, the strong `ETag` is the file's sha256."""
    return _send_artifact(request, artifacts.get(backend, merge_id, name))


@router.head("/artifacts/{name}", responses=_FILE, response_model=None, response_class=FileResponse)
def head_artifact(request: Request, backend: BackendDep, merge_id: str, name: str) -> Response:
    """Return what a download would say of itself."""
    return _send_artifact(request, artifacts.get(backend, merge_id, name))


@router.get("/artifacts.tar", responses=_TAR, response_model=None, response_class=StreamingResponse)
def get_archive(request: Request, backend: BackendDep, merge_id: str) -> Response:
    """Download the whole checkpoint directory; the same bytes every time."""
    return _send_archive(request, archive.get(backend, merge_id))


@router.head(
    "/artifacts.tar", responses=_TAR, response_model=None, response_class=StreamingResponse
)
def head_archive(request: Request, backend: BackendDep, merge_id: str) -> Response:
    """Return what a download would say of itself."""
    return _send_archive(request, archive.get(backend, merge_id))


def _send_artifact(request: Request, artifact: artifacts.Artifact) -> Response:
    etag = strong_etag(artifact.sha256)
    headers = {**_HEADERS, "ETag": etag, "Repr-Digest": repr_digest(artifact.sha256)}
    if is_unmodified(request.headers, etag):
        return Response(status_code=304, headers=headers)
    size = artifact.status.st_size
    ranges = requested_ranges(request.method, request.headers, etag, size)
    if isinstance(ranges, UnsatisfiableRange):
        return problem_response(ranges.as_error(), ranges.headers)
    return _ArtifactResponse(ranges, artifact, headers)


class _ArtifactResponse(FileResponse):
    """A file response that serves the ranges it is given, not those the client wrote."""

    def __init__(
        self,
        ranges: list[tuple[int, int]] | None,
        artifact: artifacts.Artifact,
        headers: dict[str, str],
    ) -> None:
        super().__init__(
            artifact.path,
            headers=headers,
            media_type=artifact.media_type,
            filename=artifact.name,
            stat_result=artifact.status,
        )
        self._ranges = ranges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or its ranges."""
        kept = [
            (name, value)
            for name, value in scope["headers"]
            if name.lower() not in {b"range", b"if-range"}
        ]
        if self._ranges is not None:
            wanted = ",".join(f"{start}-{stop - 1}" for start, stop in self._ranges)
            kept.append((b"range", f"bytes={wanted}".encode()))
        await super().__call__({**scope, "headers": kept}, receive, send)


def _send_archive(request: Request, found: archive.Archive) -> Response:
    etag = strong_etag(found.sha256)
    headers = {
        **_HEADERS,
        "ETag": etag,
        "Content-Disposition": f'attachment; filename="{found.name}"',
    }
    if is_unmodified(request.headers, etag):
        return Response(status_code=304, headers=headers)
    ranges = requested_ranges(request.method, request.headers, etag, found.size)
    if isinstance(ranges, UnsatisfiableRange):
        return problem_response(ranges.as_error(), ranges.headers)
    status, start, stop = 200, 0, found.size
    if ranges is not None and len(ranges) == 1:  # several at once are answered with everything
        status, (start, stop) = 206, ranges[0]
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{found.size}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/x-tar")
    body = archive.read(found, start, stop)
    return StreamingResponse(body, status, headers, media_type="application/x-tar")
