"""Chooses a representation by the Accept header."""

from __future__ import annotations

from collections.abc import Mapping


def preferred(accept: str, offered: Mapping[str, str]) -> str:
    """Return the name of the offered media type that a client likes best.

    `offered` maps media types to names, the default first: it is what `*/*` means, what wins a
    tie, and the answer to a header that names nothing of it.
    """
    default = next(iter(offered))
    liking = dict.fromkeys(offered, 0.0)
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((_quality(one[2:]) for one in parameters if one.startswith("q=")), 1.0)
        if media_type in {"*/*", default.partition("/")[0] + "/*"}:
            media_type = default
        if media_type in liking:
            liking[media_type] = max(liking[media_type], quality)
    return offered[max(liking, key=lambda name: liking[name])]


def _quality(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
