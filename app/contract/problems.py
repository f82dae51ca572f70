"""Turns pydantic's errors into readable problems, with suggestions."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import BaseModel, ValidationError

from app.contract.errors import MOST_PROBLEMS, Problem

_LONGEST_WORD = 100


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the known word nearest to `word`, or an empty string."""
    near = get_close_matches(word[:_LONGEST_WORD], list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def path_of(location: tuple[int | str, ...], prefix: str = "") -> str:
    """Return a field's path: `("checkpoints", 1, "uri")` -> `checkpoints[1].uri`."""
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def problems_of(
    error: ValidationError, model: type[BaseModel] | None = None, prefix: str = ""
) -> list[Problem]:
    """Return a problem for each error, up to MOST_PROBLEMS.

    Suggestions at the top level come from `model`'s field names.
    """
    problems = []
    items = error.errors(include_url=False)[:MOST_PROBLEMS]
    for item in items:
        location = tuple(item["loc"])
        if item["type"] == "too_short" and any(
            other["loc"][: len(location)] == location and other is not item for other in items
        ):
            continue  # the list is too short only because some entries are invalid
        message = item["msg"].removeprefix("Value error, ")
        message = message[:1].upper() + message[1:]
        if item["type"] == "extra_forbidden":
            known = model.model_fields if model is not None and len(location) == 1 else ()
            message = f"Unknown field.{did_you_mean(str(location[-1]), known)}"
            if known:
                message += f" Known: {', '.join(known)}."
        elif item["type"] == "missing":
            message = "This field is required."
        elif item["type"] not in {"value_error", "json_invalid"}:
            message += f" (given: {shown(item['input'])})."
        problems.append(Problem(message, path_of(location, prefix) or None))
    return problems


def shown(value: object, longest: int = 60) -> str:
    """Return a value as a message quotes it, in constant time."""
    if isinstance(value, str):
        text = repr(value[:longest])
    elif isinstance(value, int) and value.bit_length() > 4 * longest:
        return "a number of too many digits"
    elif value is None or isinstance(value, int | float):
        text = repr(value)
    elif isinstance(value, dict):
        return f"an object of {len(value)} fields" if value else "{}"
    elif isinstance(value, list | tuple):
        return f"a list of {len(value)} entries" if value else "[]"
    else:
        text = repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
