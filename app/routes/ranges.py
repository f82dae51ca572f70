"""Conditional and range requests (RFC 9110) for immutable bytes."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from app.contract.errors import RangeNotSatisfiableError

_RANGE = re.compile(r"(\d{0,19})-(\d{0,19})", re.ASCII)
_MOST_RANGES = 32


@dataclass(frozen=True)
class UnsatisfiableRange:
    """The result if none of the requested ranges is within the bytes."""

    size: int

    def as_error(self) -> RangeNotSatisfiableError:
        """Return the error for the response."""
        return RangeNotSatisfiableError(
            f"The Range header requests bytes beyond the end: there are {self.size:,} bytes."
        )

    @property
    def headers(self) -> dict[str, str]:
        """The header with the number of bytes."""
        return {"Content-Range": f"bytes */{self.size}"}


def strong_etag(sha256: str) -> str:
    """Return the entity tag of bytes with this digest."""
    return f'"{sha256}"'


def repr_digest(sha256: str) -> str:
    """Return the value of `Repr-Digest` (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def is_unmodified(headers: Headers, etag: str) -> bool:
    """Return whether `If-None-Match` matches this ETag."""
    given = headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    return "*" in tags or etag in tags


def requested_ranges(
    method: str, headers: Headers, etag: str, size: int
) -> list[tuple[int, int]] | UnsatisfiableRange | None:
    """Return the ranges to send as (start, stop), or None for all bytes.

    As the RFC allows, a Range header is ignored for methods other than GET, if If-Range does not
    match, if it is malformed, and if it requests too many ranges or more bytes than there are.
    """
    given = headers.get("range", "").strip()
    if_range = headers.get("if-range")
    if method != "GET" or not given.lower().startswith("bytes="):
        return None
    if if_range is not None and if_range.strip() != etag:
        return None
    parts = [part.strip() for part in given[len("bytes=") :].split(",") if part.strip()]
    matches = [_RANGE.fullmatch(part) for part in parts]
    if not matches or len(matches) > _MOST_RANGES:
        return None
    ranges = []
    for match in matches:
        if match is None or (not match[1] and not match[2]):
            return None
        if match[1] and match[2] and int(match[1]) > int(match[2]):
            return None
        ranges.append(_bounds(match[1], match[2], size))
    satisfiable = [(start, stop) for start, stop in ranges if start < stop]
    if sum(stop - start for start, stop in satisfiable) > size:
        return None  # overlapping ranges would send the file up to 32 times
    return satisfiable or UnsatisfiableRange(size)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size
