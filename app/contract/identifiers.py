"""Identifiers of resources: a prefix and a ULID, which sorts by creation time."""

from __future__ import annotations

import re

from ulid import ULID

MERGE = "mrg"
EVALUATION = "evl"
PART = "prt"
STUDY = "std"
PIECE = "pce"
API_KEY = "key"
WORKER = "wrk"

_MERGE_URI = "merge://"
_PATTERN = re.compile(r"[a-z]{3}_[0-9A-HJKMNP-TV-Z]{26}")


def new_id(prefix: str) -> str:
    """Return a new identifier such as `mrg_01J…`."""
    return f"{prefix}_{ULID()}"


def is_id(value: str, prefix: str) -> bool:
    """Return whether `value` has the form of an identifier with this prefix."""
    return value.startswith(prefix + "_") and _PATTERN.fullmatch(value) is not None


def merge_uri(merge_id: str) -> str:
    """Return the URI by which requests name the result of a merge."""
    return f"{_MERGE_URI}{merge_id}"


def merge_in(uri: str) -> str | None:
    """Return the merge's identifier in such a URI, or None for any other text."""
    return uri.removeprefix(_MERGE_URI) if uri.startswith(_MERGE_URI) else None
