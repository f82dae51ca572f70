"""Reads untrusted JSON in linear time and bounded memory."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

# A header of 5,000 tensors has 50,000; each value takes up to 100 bytes.
MOST_VALUES = 100_000


class BadJsonError(ValueError):
    """What is wrong with a text, worded to follow its name."""


def read_object(content: bytes, *, strict: bool = False) -> dict[str, Any]:
    """Return the JSON object that `content` is.

    `strict` refuses what JSON itself leaves open: a key given twice (else the last one counts) and
    constants such as NaN. Raises BadJsonError.
    """
    # Each value but the first comes after one of these; those inside strings are few.
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise BadJsonError(f"holds more than {MOST_VALUES:,} values")
    try:
        document = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique if strict else None,
            parse_constant=_refuse if strict else None,
        )
    except BadJsonError:
        raise
    except (ValueError, RecursionError):
        raise BadJsonError("is not JSON") from None
    if not isinstance(document, dict):
        raise BadJsonError("is not a JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise BadJsonError(f"names {key[:100]!a} twice")
    return entries


def _refuse(constant: str) -> None:
    raise BadJsonError(f"holds {constant}, which is not JSON")
