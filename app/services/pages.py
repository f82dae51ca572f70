"""Opaque page tokens: the position of the last row seen, so that inserts do not shift pages."""

from __future__ import annotations

import base64
import binascii
import json
import sys

from app.contract.errors import InvalidRequestError, Problem


def encode_token(*position: float | int | str) -> str:
    """Return a token for a position (the sort key of the last row on the page)."""
    text = json.dumps(position, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_time_token(token: str | None) -> tuple[float, str] | None:
    """Return (seconds, identifier) of a token; InvalidRequestError if it is not one of ours."""
    if token is None:
        return None
    match _decode(token):
        case [float() | int() as seconds, str() as identifier] if (
            abs(seconds) <= sys.float_info.max and identifier.isascii() and identifier.isprintable()
        ):
            return float(seconds), identifier
    raise _not_ours()


def decode_offset_token(token: str | None) -> int:
    """Return the offset of a token, or 0 without one."""
    if token is None:
        return 0
    match _decode(token):
        case [int() as offset] if 0 <= offset < 2**31:
            return offset
    raise _not_ours()


def _decode(token: str) -> object:
    try:
        padded = token + "=" * (-len(token) % 4)
        return json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise _not_ours() from None


def _not_ours() -> InvalidRequestError:
    message = "Not a token of this list; send the `next_page_token` of the previous page."
    return InvalidRequestError.of([Problem(message, "page_token")])
