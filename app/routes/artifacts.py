"""`/merges/{id}/artifacts`: the list, single files, and all of them as a tar."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.routes.dependencies import BackendDep
from app.routes.openapi import problems
from app.routes.pools import FILES
from app.routes.problems import problem_response
from app.routes.ranges import (
    UnsatisfiableRange,
    is_unmodified,
    repr_digest,
    requested_ranges,
    strong_etag,
)
from app.services import archive, artifacts
from app.services.downloads import Download, Slice
from app.services.resources import ArtifactPage

router = APIRouter(prefix="/merges/{merge_id}", tags=["artifacts"])
_CHUNK_BYTES = 1024**2
# A client that reads nothing for this long is gone, or keeps the files open on purpose.
_STALLED_SECONDS = 60.0
_HEADERS = {
    "Accept-Ranges": "bytes",
    # Proxies must not change the bytes: clients check the digest.
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
        304: {"description": "`If-None-Match` has the current ETag."},
        **problems(404, 416),
    }


_FILE = _responses(
    "application/octet-stream", "application/json", "text/plain", several="multipart/byteranges"
)
_TAR = _responses("application/x-tar")
_OPTIONS: dict[str, Any] = {"response_model": None, "response_class": StreamingResponse}


@router.get("/artifacts", responses=problems(404))
def list_artifacts(backend: BackendDep, merge_id: str) -> ArtifactPage:
    """List the merged checkpoint's files; empty until the merge has succeeded."""
    return artifacts.list_all(backend, merge_id)


@router.get("/artifacts/{name}", responses=_FILE, **_OPTIONS)
@FILES
def get_artifact(request: Request, backend: BackendDep, merge_id: str, name: str) -> Response:
    """Download a file. `Range` resumes a download; the strong `ETag` is the file's sha256."""
    return _send_artifact(request, artifacts.open_artifact(backend, merge_id, name))


@router.head("/artifacts/{name}", responses=_FILE, **_OPTIONS)
@FILES
def head_artifact(request: Request, backend: BackendDep, merge_id: str, name: str) -> Response:
    """Return the headers of a download."""
    return _send_artifact(request, artifacts.open_artifact(backend, merge_id, name))


@router.get("/artifacts.tar", responses=_TAR, **_OPTIONS)
@FILES
def get_archive(request: Request, backend: BackendDep, merge_id: str) -> Response:
    """Download the whole checkpoint folder as a tar, always with the same bytes."""
    return _send(request, archive.open_archive(backend, merge_id), {}, several=False)


@router.head("/artifacts.tar", responses=_TAR, **_OPTIONS)
@FILES
def head_archive(request: Request, backend: BackendDep, merge_id: str) -> Response:
    """Return the headers of a download."""
    return _send(request, archive.open_archive(backend, merge_id), {}, several=False)


def _send_artifact(request: Request, download: Download) -> Response:
    # Files only: the digest of a tar would need all of its bytes.
    digest = {"Repr-Digest": repr_digest(download.sha256)}
    return _send(request, download, digest, several=True)


def _send(
    request: Request, download: Download, extra: dict[str, str], *, several: bool
) -> Response:
    """Return the response; without `several`, a request for several ranges gets all bytes."""
    etag = strong_etag(download.sha256)
    headers = {**_HEADERS, **extra, "ETag": etag, "Content-Disposition": _attachment(download.name)}
    if is_unmodified(request.headers, etag):
        download.close()
        return Response(status_code=304, headers=headers)
    ranges = requested_ranges(request.method, request.headers, etag, download.size)
    if isinstance(ranges, UnsatisfiableRange):
        download.close()
        return problem_response(ranges.as_error(), ranges.headers)
    if ranges is not None and len(ranges) > 1 and not several:
        ranges = None
    if ranges is None:
        sent = download
    elif len(ranges) == 1:
        start, stop = ranges[0]
        headers["Content-Range"] = _content_range(start, stop, download.size)
        sent = _replaced(download, [Slice(download, start, stop)], download.media_type)
    else:
        sent = _multipart(download, ranges)
    headers["Content-Length"] = str(sent.size)
    status = 200 if ranges is None else 206
    if request.method == "HEAD":
        sent.close()
        return Response(status_code=status, headers=headers, media_type=sent.media_type)
    return _DownloadResponse(sent, status, headers)


def _multipart(download: Download, ranges: list[tuple[int, int]]) -> Download:
    """Return the ranges as a multipart body (RFC 9110, 15.3.7.2)."""
    boundary = secrets.token_hex(13)
    pieces: list[bytes | Slice] = []
    for start, stop in ranges:
        head = (
            f"--{boundary}\r\nContent-Type: {download.media_type}\r\n"
            f"Content-Range: {_content_range(start, stop, download.size)}\r\n\r\n"
        )
        pieces += [head.encode(), Slice(download, start, stop), b"\r\n"]
    pieces.append(f"--{boundary}--".encode())
    return _replaced(download, pieces, f"multipart/byteranges; boundary={boundary}")


def _replaced(download: Download, pieces: list[Any], media_type: str) -> Download:
    return Download(download.name, media_type, download.sha256, pieces)


def _content_range(start: int, stop: int, size: int) -> str:
    return f"bytes {start}-{stop - 1}/{size}"


def _attachment(name: str) -> str:
    quoted = quote(name)
    given = f'filename="{name}"' if quoted == name else f"filename*=utf-8''{quoted}"
    return f"attachment; {given}"


class _DownloadResponse(StreamingResponse):
    """Streams a download, and always closes its files."""

    def __init__(self, download: Download, status: int, headers: dict[str, str]) -> None:
        super().__init__(_chunks(download), status, headers, media_type=download.media_type)
        self._download = download

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all bytes; TimeoutError if the client reads nothing for a minute."""

        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(_STALLED_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        finally:
            self._download.close()


async def _chunks(download: Download) -> AsyncIterator[bytes]:
    for start in range(0, download.size, _CHUNK_BYTES):
        yield await FILES.run(download.read, start, min(start + _CHUNK_BYTES, download.size))
