"""Splits URIs, and refuses ambiguous ones: each must mean one place."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from app.contract.errors import SourceNotAllowedError

_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?", re.ASCII)
# The limit of common file systems.
_LONGEST_NAME = 255


@dataclass(frozen=True)
class UriParts:
    """A URI's parts: scheme and host in lower case, the path decoded, without empty segments."""

    scheme: str
    host: str
    port: int | None
    path: str
    segments: tuple[str, ...]

    @property
    def name(self) -> str | None:
        """The last segment, or None without a path."""
        return self.segments[-1] if self.segments else None

    @property
    def url(self) -> str:
        """The URI in its one normal form: percent-encoded, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{host}{port}" + "".join(f"/{quote(s)}" for s in self.segments)


def split_uri(uri: str, *, names_server: bool) -> UriParts:
    """Return the parts of a `scheme://host/path` URI.

    Raises:
        SourceNotAllowedError: it has a password, a query or a fragment, its path could be read in
            two ways, or it must name a server and does not.

    """
    if "@" in uri.partition("//")[2].partition("/")[0]:
        # The message leaves the URI out: it would carry the password into records and logs.
        raise SourceNotAllowedError("a URI must not carry a user name or a password")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise SourceNotAllowedError(f"{uri}: this is not a URI") from None
    if "?" in uri or "#" in uri:
        # Signatures and tokens are in queries; records would show them.
        shown = re.split(r"[?#]", uri)[0]
        raise SourceNotAllowedError(
            f"{shown}: a URI has no query and no fragment here (write %3F and %23 in file names)"
        )
    if names_server and not _HOST.fullmatch(parts.netloc):
        raise SourceNotAllowedError(
            f"{uri}: {parts.scheme}:// needs a host in plain ASCII, with a port or not"
        )
    segments = tuple(_decode(uri, segment) for segment in parts.path.split("/") if segment)
    return UriParts(parts.scheme, parts.hostname or "", port, parts.path, segments)


def file_uri(path: Path) -> str:
    """Return the `file://` URI of an absolute path."""
    return f"file://{quote(os.fspath(path))}"


def _decode(uri: str, encoded: str) -> str:
    """Decode a segment once; refuse what a second reader could take for another path."""
    try:
        segment = unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        raise SourceNotAllowedError(f"{uri}: the percent-encoded bytes are not UTF-8") from None
    if segment in (".", "..") or "/" in segment or "\\" in segment:
        raise SourceNotAllowedError(
            f"{uri}: a path has no '.' or '..' segments and no encoded slashes"
        )
    if len(segment.encode()) > _LONGEST_NAME:
        raise SourceNotAllowedError(f"{uri}: a name in a path has {_LONGEST_NAME} bytes at most")
    if not segment.isprintable() or _ESCAPE.search(segment):
        raise SourceNotAllowedError(
            f"{uri}: a path is percent-encoded once at most and has no control characters"
        )
    return segment
