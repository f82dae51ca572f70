"""Reads a request's target host and origin page from its (untrusted) headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from fastapi import Request

from app.contract.errors import ForbiddenError, RequestRefusedError

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(
    rf"({_LABEL}(?:\.{_LABEL}){{0,126}}\.?|\[[0-9A-Fa-f:.]{{2,45}}\])(?::([0-9]{{1,5}}))?"
)
_SAFE = frozenset({"GET", "HEAD"})


def host_of(request: Request) -> str | None:
    """Return the name in the Host header; None for HTTP/1.0 without one.

    Raises RequestRefusedError unless there is exactly one well-formed header (RFC 9112, 3.2).
    """
    given = request.headers.getlist("host")
    if not given and request.scope.get("http_version") == "1.0":
        return None
    name = _name_in(given[0]) if len(given) == 1 else None
    if name is None:
        raise RequestRefusedError(
            "A request needs exactly one valid Host header: a name or an address, with a port "
            f"unless it is 80 ({len(given)} given)."
        )
    return name


def forwarded_names(request: Request) -> Iterator[str | None]:
    """Yield the hosts and clients in headers that proxies add; None for unreadable ones."""
    for header in ("x-forwarded-host", "x-forwarded-for", "x-real-ip"):
        for value in request.headers.getlist(header):
            for part in value.split(","):
                yield _address_in(part.strip())
    for header in request.headers.getlist("forwarded"):
        for pair in re.split(r"[,;]", header):
            name, _, value = pair.strip().partition("=")
            if name.lower() in {"for", "host"}:
                yield _address_in(value.strip('"'))


def refuse_other_sites(request: Request) -> None:
    """Raise ForbiddenError for a change that a web page of another origin requests.

    Like Go's `http.CrossOriginProtection`: browsers send Sec-Fetch-Site, or, if they are old or use
    plain http, Origin. Programs send neither.
    """
    if request.method in _SAFE:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        allowed = site in {"same-origin", "none"}
    else:
        allowed = origin is None or _authority(origin) == request.headers.get("host", "").lower()
    if not allowed:
        raise ForbiddenError(
            f"A web page of another origin ({(origin or site or '')[:100]}) must not change "
            "anything here; call the service from a program, or from a page that it serves."
        )


def _name_in(host: str) -> str | None:
    match = _HOST.fullmatch(host)
    if match is None or int(match[2] or 0) > 65535 or len(match[1]) > 255:
        return None
    return match[1]


def _address_in(text: str) -> str | None:
    """Return the host in a proxy's value: `10.0.0.9`, `[::1]:80`, `::1`, `a.example:80`."""
    bare = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
    return _name_in(bare)


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
