"""Sends downloads: conditional and range requests, streaming, closing the files."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.routes.openapi import problems
from app.routes.pools import FILES
from app.routes.problems import problem_response
from app.routes.ranges import (
    UnsatisfiableRange,
    is_unmodified,
    requested_ranges,
    strong_etag,
)
from app.services.downloads import Download, Slice

_CHUNK_BYTES = 1024**2
# A client that reads nothing for this long is gone, or keeps the files open on purpose.
_STALLED_SECONDS = 60.0
_HEADERS = {
    "Accept-Ranges": "bytes",
    # Proxies must not change the bytes: clients check the digest.
    "Cache-Control": "private, no-transform",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def download_responses(
    *media_types: str, several: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a route that sends a download; `several` is that of many ranges."""
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


def send_download(
    request: Request, download: Download, extra: Mapping[str, str], *, several: bool
) -> Response:
    """Return the response; without `several`, a request for several ranges gets all bytes."""
    etag = strong_etag(download.version)
    headers = {**_HEADERS, **extra, "ETag": etag}
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
    return Download(download.name, media_type, download.version, pieces)


def _content_range(start: int, stop: int, size: int) -> str:
    return f"bytes {start}-{stop - 1}/{size}"


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
