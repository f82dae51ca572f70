"""Parses `--sweep` options: a parameter with a list or a range of values, or both."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from app.contract.errors import InvalidRequestError, Problem
from app.contract.sweeps import MOST_POINTS

Value = bool | int | float | str | None
_WORDS: dict[str, Value] = {"true": True, "false": False, "null": None}
_EXAMPLES = "scaling_coefficient=0.1:1.0:0.1 (first:last:step) or beta=0.1,0.3"


def read_sweeps(options: Sequence[str]) -> dict[str, list[Value]]:
    """Return each swept parameter's values; InvalidRequestError lists all invalid options."""
    swept: dict[str, list[Value]] = {}
    problems = []
    for option in options:
        name, equals, text = (part.strip() for part in option.partition("="))
        try:
            if not equals or not name:
                raise ValueError(f'"{option}" is not a parameter with values; write {_EXAMPLES}.')
            if name in swept:
                raise ValueError(f"{name} is given twice; give all its values in one option.")
            swept[name] = [value for part in text.split(",") for value in _values(name, part)]
        except ValueError as error:
            problems.append(Problem(str(error), "--sweep"))
    if problems:
        raise InvalidRequestError.of(problems)
    return swept


def _values(name: str, text: str) -> list[Value]:
    """Return the values of one part: a single value, or those of a range."""
    text = text.strip()
    if not text:
        raise ValueError(f"{name} has an empty value; write {_EXAMPLES}.")
    if ":" in text:
        return _range(name, text)
    if text in _WORDS:
        return [_WORDS[text]]
    for kind in (int, float):
        try:
            return [kind(text)]
        except ValueError:
            pass
    return [text]


def _range(name: str, text: str) -> list[Value]:
    """Return first, first + step, ... up to last, in decimal so that 0.1:0.3:0.1 includes 0.3."""
    try:
        first, last, step = (Decimal(part.strip()) for part in text.split(":"))
    except (InvalidOperation, ValueError):
        raise ValueError(f"{name}: {text} is not a range; write {_EXAMPLES}.") from None
    if not all(number.is_finite() for number in (first, last, step)) or step == 0:
        raise ValueError(f"{name}: {text} needs finite numbers and a step that is not 0.")
    if (last - first) * step < 0:
        raise ValueError(f"{name}: {text} is empty: steps of {step} lead away from {last}.")
    if abs(last - first) >= abs(step) * MOST_POINTS:
        raise ValueError(f"{name}: {text} has more than {MOST_POINTS} values.")
    count = int((last - first) / step) + 1
    numbers = [first + number * step for number in range(count)]
    whole = all(number == int(number) for number in (first, step)) and "." not in text
    return [int(number) if whole else float(number) for number in numbers]
