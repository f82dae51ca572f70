"""The query of a dataset's URI: which part of it to read, and from which columns."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from urllib.parse import parse_qsl

from app.contract.errors import SourceNotAllowedError


@dataclass(frozen=True)
class DatasetQuery:
    """What a URI such as `file:///sets/cv?config=pt&split=test&text=sentence` asks for.

    Attributes:
        config: the subset's name.
        split: train, validation, test, or another one's name.
        audio: the column that holds the audio.
        text: the column that holds the reference.
        speaker: the column of the speakers; empty reads none.
        language: the column of the languages; empty reads none.
        tar: the name of the tars that hold the audio, with a range for several.
        limit: how many utterances to read, from the first.

    """

    config: str | None = None
    split: str | None = None
    audio: str | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    tar: str | None = None
    limit: int | None = None


NAMES = tuple(field.name for field in fields(DatasetQuery))


def split_query(uri: str) -> tuple[str, DatasetQuery]:
    """Return the URI without its query, and the query.

    Raises SourceNotAllowedError for an unknown or repeated name, or a limit that is no number.
    """
    bare, mark, text = uri.partition("?")
    if not mark:
        return uri, DatasetQuery()
    pairs = parse_qsl(text, keep_blank_values=True)
    asked = dict(pairs)
    # Signatures and tokens are in queries: the message shows names of ours only.
    if not asked or len(asked) < len(pairs) or not asked.keys() <= set(NAMES) or "#" in text:
        raise SourceNotAllowedError(
            f"{bare}: a dataset's query has {', '.join(NAMES)}, each once "
            "(write %3F and %23 in file names)"
        )
    limit = asked.pop("limit", None)
    if limit is not None and (not limit.isascii() or not limit.isdecimal() or int(limit[:9]) < 1):
        raise SourceNotAllowedError(f"{bare}: limit is a number of utterances from 1 up")
    query = replace(DatasetQuery(**asked), limit=int(limit[:9]) if limit else None)  # type: ignore[arg-type]
    return bare, query
