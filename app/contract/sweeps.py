"""Sweeps: recipes with several values for a parameter, and the points of their grid."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from app.contract.errors import InvalidRequestError, Problem
from app.contract.mergekit import from_mergekit, is_mergekit
from app.contract.recipe import Recipe, parse_request
from app.contract.requests import MergeRequest

MOST_POINTS = 100


@dataclass(frozen=True)
class Point:
    """One merge of a sweep: the values of the swept parameters, and the recipe with them."""

    values: Mapping[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        """`beta=0.3,rank_fraction=0.5`: the point's name in messages, and its folder."""
        return _name(self.values)


def lists_in(document: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the parameters of a recipe that are lists, and therefore swept."""
    parameters = document.get("parameters")
    if is_mergekit(document) or not isinstance(parameters, Mapping):
        return {}
    return {name: value for name, value in parameters.items() if isinstance(value, list)}


def parse_sweep(
    document: Mapping[str, Any],
    swept: Mapping[str, Sequence[Any]] | None = None,
    *,
    max_checkpoints: int = 32,
) -> tuple[Point, ...]:
    """Return the points of the grid of the recipe's lists and `swept`; the last varies fastest.

    `swept` overrides the recipe's parameters. Raises InvalidRequestError that lists what is wrong,
    and at which points.
    """
    if is_mergekit(document):
        document = from_mergekit(document)
    values = {**lists_in(document), **(swept or {})}
    _check_values(values)
    found: list[tuple[dict[str, Any], Recipe]] = []
    wrong: dict[Problem, list[dict[str, Any]]] = {}
    grid = [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
    for chosen in grid:
        try:
            parsed = parse_request(_with(document, chosen), max_checkpoints=max_checkpoints)
            found.append((chosen, parsed.recipe))
        except InvalidRequestError as error:
            for problem in error.as_problems():
                wrong.setdefault(problem, []).append(chosen)
    if wrong:
        raise InvalidRequestError.of(
            [_located(problem, points, len(grid)) for problem, points in wrong.items()]
        )
    points = [Point({name: r.parameters[name] for name in chosen}, r) for chosen, r in found]
    _check_distinct(points)
    return tuple(points)


def _check_values(values: Mapping[str, Sequence[Any]]) -> None:
    """Refuse fields that are not parameters, empty lists, and grids that are too large."""
    problems = []
    for name, chosen in values.items():
        if name in MergeRequest.model_fields:
            message = f"A sweep varies parameters of the method; {name} is a field of the recipe."
            problems.append(Problem(message, name))
        elif not chosen:
            message = "The list is empty; give at least one value."
            problems.append(Problem(message, f"parameters.{name}"))
    count = prod(len(chosen) for chosen in values.values())
    if count > MOST_POINTS:
        sizes = " x ".join(str(len(chosen)) for chosen in values.values())
        message = f"The sweep has {count:,} points ({sizes}); at most {MOST_POINTS} are allowed."
        problems.append(Problem(message, "parameters"))
    if problems:
        raise InvalidRequestError.of(problems)


def _check_distinct(points: Sequence[Point]) -> None:
    """Refuse points that are equal after validation, such as 1 and 1.0."""
    twice = [name for name, count in Counter(point.name for point in points).items() if count > 1]
    if twice:
        raise InvalidRequestError.of(
            [Problem(f"The point {name} is given twice.", "parameters") for name in twice]
        )


def _with(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, Mapping):
        return dict(document)
    return {**document, "parameters": {**parameters, **values}}


def _located(problem: Problem, points: Sequence[Mapping[str, Any]], of: int) -> Problem:
    """Return the problem with the points that have it, unless all of them do."""
    if len(points) == of:
        return problem
    more = f" (and {len(points) - 1} more)" if len(points) > 1 else ""
    return Problem(f"At {_name(points[0])}{more}: {problem.message}", problem.param)


def _name(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
