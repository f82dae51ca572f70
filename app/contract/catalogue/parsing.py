"""Parses and checks a request's method, parameters and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.contract.catalogue.method import MethodParameters
from app.contract.catalogue.registry import CATALOGUE
from app.contract.errors import MOST_PROBLEMS, InvalidRequestError, Problem
from app.contract.problems import did_you_mean

_SYNONYMS = dict.fromkeys(("lambda", "alpha", "scale", "scaling"), "scaling_coefficient")
_CANCELS = 1e-9
"""Relative size below which a sum of weights counts as 0: 0.1 + 0.2 − 0.3 is not 0 in binary."""


def parse_method(name: str, *, param: str = "method") -> type[MethodParameters]:
    """Return the method's class; InvalidRequestError suggests the nearest name."""
    method = CATALOGUE.get(name)
    if method is None:
        hint = did_you_mean(name, CATALOGUE)
        message = f'Unknown method "{name}".{hint} Known: {", ".join(CATALOGUE)}.'
        raise InvalidRequestError.of([Problem(message, param)])
    return method


def parse_parameters(name: str, given: Any, *, param: str = "parameters") -> MethodParameters:
    """Return the method's parameters, defaults filled in; InvalidRequestError lists every fault."""
    method = parse_method(name)
    if not isinstance(given, Mapping):
        message = f"Must be an object with the parameters of {name}, not {_shown(given)}."
        raise InvalidRequestError.of([Problem(message, param)])
    try:
        return method.model_validate(dict(given))
    except ValidationError as error:
        faults = error.errors(include_url=False)[:MOST_PROBLEMS]
    raise InvalidRequestError.of([_problem(method, item, param) for item in faults])


def validate_weights(
    parameters: MethodParameters, weights: Sequence[float | None] | None
) -> list[Problem]:
    """Return what is wrong with the merging weights; None stands for a weight not given (1)."""
    given = {i: weight for i, weight in enumerate(weights or ()) if weight is not None}
    if not parameters.uses_weights:
        message = f"{parameters.name} has no weights; remove this one."
        return [Problem(message, _weight_param(i)) for i in given]
    problems = [
        Problem(f"A weight must be a finite number, not {weight}.", _weight_param(i))
        for i, weight in given.items()
        if not math.isfinite(weight)
    ]
    if parameters.needs_calibration:
        problems += [
            Problem(f"{parameters.name} takes no negative weights.", _weight_param(i))
            for i, weight in given.items()
            if weight < 0
        ]
    if problems or not weights or not parameters.normalizes_weights:
        return problems
    effective = [1.0 if weight is None else float(weight) for weight in weights]
    if abs(math.fsum(effective)) > _CANCELS * math.fsum(map(abs, effective)):
        return []
    message = f"The weights add up to 0, and {parameters.name} divides by their sum"
    if "normalize" in type(parameters).model_fields:
        message += "; change them or set parameters.normalize to false"
    return [Problem(f"{message}.", "checkpoints")]


def _weight_param(index: int) -> str:
    return f"checkpoints[{index}].weight"


def _problem(method: type[MethodParameters], item: ErrorDetails, param: str) -> Problem:
    field = ".".join(str(part) for part in item["loc"])
    context = item.get("ctx", {})
    if item["type"] == "extra_forbidden":
        return Problem(_unknown(method, field), f"{param}.{field}")
    expected = {
        "float_type": "a number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "literal_error": f"one of {context.get('expected', '')}",
        "greater_than": f"greater than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
    }.get(item["type"])
    if expected is None:
        return Problem(f"{item['msg']}; given: {_shown(item['input'])}.", f"{param}.{field}")
    message = f"Must be {expected}, not {_shown(item['input'])}."
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        message += did_you_mean(item["input"], str(context.get("expected", "")).split("'"))
    if isinstance(item["input"], list | tuple):
        message += " For a sweep over several values, use `afluente merge --sweep`."
    return Problem(message, f"{param}.{field}")


def _unknown(method: type[MethodParameters], field: str) -> str:
    known = method.model_fields
    synonym = _SYNONYMS.get(field.lower())
    hint = did_you_mean(field, known)
    if synonym in known:
        hint = f' Did you mean "{synonym}"?'
    elif not hint:
        others = [name for name, other in CATALOGUE.items() if field in other.model_fields]
        hint = f" (It is a parameter of {', '.join(others)}.)" if others else ""
    return f'{method.name} has no parameter "{field}".{hint} Known: {", ".join(known) or "none"}.'


def _shown(value: object) -> str:
    if isinstance(value, str):
        value = f'the text "{value}"' if len(value) < 60 else f'the text "{value[:56]}…"'
        return str(value)
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return "nothing (null)" if value is None else text if len(text) <= 60 else text[:59] + "…"
