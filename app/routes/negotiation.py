"""Content negotiation by the Accept header."""

from __future__ import annotations

from collections.abc import Mapping


def preferred(accept: str, offered: Mapping[str, str]) -> str:
    """Return the name of the offered media type that the client prefers.

    `offered` maps media types to names. The first is the default: it matches `*/*`, wins ties, and
    is returned if the header names no offered type.
    """
    default = next(iter(offered))
    qualities = dict.fromkeys(offered, 0.0)
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((_quality(one[2:]) for one in parameters if one.startswith("q=")), 1.0)
        if media_type in {"*/*", default.partition("/")[0] + "/*"}:
            media_type = default
        if media_type in qualities:
            qualities[media_type] = max(qualities[media_type], quality)
    return offered[max(qualities, key=lambda name: qualities[name])]


def _quality(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
