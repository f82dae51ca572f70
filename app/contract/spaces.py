"""The space that a study searches: each candidate's parameters, and the recipe of a point in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import floor, prod
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from app.contract.catalogue import CATALOGUE
from app.contract.errors import InvalidRequestError, Problem
from app.contract.measures import Measure
from app.contract.problems import did_you_mean, problems_of
from app.contract.recipe import ParsedRequest, Recipe, parse_request
from app.contract.studies import (
    DEFAULT_TRIALS,
    MOST_TRIALS,
    Candidate,
    Constraint,
    Range,
    StudyRequest,
)

_SCALARS = (str, int, float, bool)
# Multiples of a step are rounded: 0.3 instead of 0.30000000000000004.
DIGITS = 12
_SHORT = {"scaling_coefficient": "λ", "scaling_coefficient_last": "λ_last", "beta": "β"}


@dataclass(frozen=True)
class Dimension:
    """A parameter that is searched: choices, or a range (of integers if `integer`)."""

    name: str
    choices: tuple[Any, ...] = ()
    range: Range | None = None
    integer: bool = False

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that show whether all are allowed: every choice, or both ends."""
        if self.range is None:
            return self.choices
        return tuple(self._typed(value) for value in (self.range.low, self.range.high))

    @property
    def steps(self) -> tuple[Any, ...]:
        """Every value, for a grid; empty for a range without a step."""
        if self.range is None:
            return self.choices
        step = self.range.step or (1 if self.integer else None)
        if step is None:
            return ()
        count = floor((self.range.high - self.range.low) / step + 1e-9) + 1
        values = (
            round(self.range.low + i * step, DIGITS) for i in range(min(count, MOST_TRIALS + 1))
        )
        return tuple(self._typed(value) for value in values)

    def _typed(self, value: float) -> Any:
        return int(value) if self.integer else value


@dataclass(frozen=True)
class Space:
    """A candidate with its dimensions; `document` is the study's part of a merge's request."""

    candidate: Candidate
    dimensions: tuple[Dimension, ...]
    document: Mapping[str, Any]
    experts: tuple[str, ...]

    def request(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of `POST /merges` for a point: a value for each dimension."""
        rules = []
        for index, rule in enumerate(self.candidate.rules):
            method = rule.method or self.candidate.method
            one: dict[str, Any] = {"match": rule.match, "method": method}
            one["parameters"] = _filled(rule.parameters, values, f"rules[{index}].")
            if rule.weights is not None:
                one["weights"] = list(rule.weights)
            rules.append(one)
        weights = _filled(self.candidate.weights, values, "weights.")
        checkpoints = [
            {**checkpoint, **({"weight": weights[name]} if name in weights else {})}
            for checkpoint, name in zip(self.document["checkpoints"], self.experts, strict=True)
        ]
        unused = () if self.needs_calibration else ("calibration",)
        return {
            **{name: value for name, value in self.document.items() if name not in unused},
            "checkpoints": checkpoints,
            "method": self.candidate.method,
            "parameters": _filled(self.candidate.parameters, values, ""),
            "rules": rules,
        }

    @property
    def needs_calibration(self) -> bool:
        """Whether one of the candidate's methods needs calibration sets."""
        rules = (rule.method for rule in self.candidate.rules if rule.method)
        used = {self.candidate.method, *rules}
        return any(name in CATALOGUE and CATALOGUE[name].needs_calibration for name in used)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield every point; the last dimension varies fastest."""
        names = [dimension.name for dimension in self.dimensions]
        for chosen in product(*(dimension.steps for dimension in self.dimensions)):
            yield dict(zip(names, chosen, strict=True))

    @property
    def size(self) -> int:
        """The number of points of the grid."""
        return prod(len(dimension.steps) for dimension in self.dimensions)

    def label(self, values: Mapping[str, Any]) -> str:
        """Return `boosted_tsv_m β=0.3 λ=1.2`: how tables name a point."""
        parts = [self.candidate.method]
        for name in (dimension.name for dimension in self.dimensions):
            value = values[name]
            where, _, last = name.rpartition(".")
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{where}{'.' if where else ''}{_SHORT.get(last, last)}={shown}")
        return " ".join(parts)


@dataclass(frozen=True)
class Study:
    """A checked study: the request and what follows from it."""

    request: StudyRequest
    spaces: tuple[Space, ...]
    experts: tuple[str, ...]
    measures: tuple[Measure, ...]
    limits: tuple[tuple[Constraint, Measure], ...]
    trials: int

    @property
    def systems(self) -> tuple[str, ...]:
        """The names of what trials are compared with: base, experts, references."""
        references = tuple(reference.name for reference in self.request.references)
        return (*(("base",) if self.request.base else ()), *self.experts, *references)

    @property
    def example(self) -> Recipe:
        """The recipe of some trial."""
        values = {one.name: one.examples[0] for one in self.spaces[0].dimensions}
        return self.parsed(0, values).recipe

    def parsed(self, candidate: int, values: Mapping[str, Any]) -> ParsedRequest:
        """Return a point's request and recipe; InvalidRequestError if it is not valid."""
        return parse_request(self.spaces[candidate].request(values), max_checkpoints=10**6)


def check_study(request: StudyRequest, *, max_checkpoints: int = 32) -> Study:
    """Return the study; InvalidRequestError lists everything that is wrong with it."""
    problems: list[Problem] = []
    experts = _experts(request, max_checkpoints, problems)
    candidates = _candidates(request)
    document = _document(request)
    spaces = []
    for index, candidate in enumerate(candidates):
        where = f"candidates[{index}]."
        found: list[Problem] = []
        dimensions = _dimensions(candidate, where, experts, found)
        space = Space(candidate, dimensions, document, experts)
        spaces.append(space)
        problems += found or (_problems_at(space, where) if experts else [])
    if request.calibration and not any(space.needs_calibration for space in spaces):
        message = "No candidate uses the calibration sets; remove them, or add one that does."
        problems.append(Problem(message, "calibration"))
    measures = _measured(request, problems)
    limits = _limited(request, experts, problems)
    references = [reference.name for reference in request.references]
    for index, name in enumerate(references):
        if name in {"base", "merge", *experts}:
            message = f'"{name}" is the name of the base or of an expert; choose another.'
            problems.append(Problem(message, f"references[{index}].name"))
    trials = _trials(request, spaces, problems) if not problems else 0
    if problems:
        raise InvalidRequestError.of(list(dict.fromkeys(problems)))
    return Study(request, tuple(spaces), experts, measures, limits, trials)


def _document(request: StudyRequest) -> dict[str, Any]:
    """Return what all trials' requests share."""
    checkpoints = [_given(one) for one in request.checkpoints]
    return {
        **({"base": _given(request.base)} if request.base else {}),
        "checkpoints": checkpoints,
        "seed": request.seed,
        "output": request.output.model_dump(mode="json"),
        **({"calibration": _given(request.calibration)} if request.calibration else {}),
    }


def _given(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_none=True)


def _experts(
    request: StudyRequest, max_checkpoints: int, problems: list[Problem]
) -> tuple[str, ...]:
    """Return the experts' names; adds what is wrong with the checkpoints to `problems`."""
    plain = {**_document(request), "method": "soup"}
    plain.pop("calibration", None)
    try:
        recipe = parse_request(plain, max_checkpoints=max_checkpoints).recipe
    except InvalidRequestError as error:
        problems += error.as_problems()
        return ()
    return tuple(source.name for source in recipe.checkpoints)


def _candidates(request: StudyRequest) -> tuple[Candidate, ...]:
    if request.candidates != "all":
        return request.candidates
    count = len(request.checkpoints)
    return tuple(
        Candidate(method=name)
        for name, kind in CATALOGUE.items()
        if (kind.base != "required" or request.base is not None)
        and (not kind.needs_calibration or request.calibration is not None)
        and kind.min_experts <= count + (kind.counts_base and request.base is not None)
        and (
            kind.max_experts is None
            or count + (kind.counts_base and request.base is not None) <= kind.max_experts
        )
    )


def _dimensions(
    candidate: Candidate, where: str, experts: Sequence[str], problems: list[Problem]
) -> tuple[Dimension, ...]:
    found = _searched(candidate.method, candidate.parameters, "", f"{where}parameters.", problems)
    for index, rule in enumerate(candidate.rules):
        method = rule.method or candidate.method
        place = f"{where}rules[{index}].parameters."
        found += _searched(method, rule.parameters, f"rules[{index}].", place, problems)
    for name in candidate.weights:
        if experts and name not in experts:
            message = f"There is no expert of this name.{did_you_mean(name, experts)}"
            message += f" Experts: {', '.join(experts)}."
            problems.append(Problem(message, f"{where}weights.{name}"))
    found += _searched("", candidate.weights, "weights.", f"{where}weights.", problems)
    return tuple(found)


def _searched(
    method: str, given: Mapping[str, Any], prefix: str, where: str, problems: list[Problem]
) -> list[Dimension]:
    """Return the parameters that are lists or ranges; adds what is wrong to `problems`."""
    found = []
    for name, value in given.items():
        if isinstance(value, list | tuple):
            if not value or not all(isinstance(one, _SCALARS) for one in value):
                message = "A list of choices has at least one value, each a number or a text."
                problems.append(Problem(message, where + name))
            elif len(set(value)) < len(value):
                problems.append(Problem("A choice is given twice.", where + name))
            else:
                found.append(Dimension(prefix + name, tuple(value)))
        elif isinstance(value, Mapping):
            try:
                wide = Range.model_validate(value)
            except ValidationError as error:
                problems += problems_of(error, Range, where + name)
                continue
            integer = _is_integer(method, name)
            given_numbers = (wide.low, wide.high, wide.step or 1.0)
            if integer and not all(number.is_integer() for number in given_numbers):
                message = f"{name} is a whole number; so are `low`, `high` and `step`."
                problems.append(Problem(message, where + name))
                continue
            found.append(Dimension(prefix + name, (), wide, integer))
    return found


def _is_integer(method: str, name: str) -> bool:
    """Return whether a method's parameter is a whole number."""
    kind = CATALOGUE.get(method)
    field = kind.model_fields.get(name) if kind else None
    return field is not None and int in {field.annotation, *get_args(field.annotation)}


def _filled(given: Mapping[str, Any], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name: values.get(prefix + name, value) for name, value in given.items()}


def _problems_at(space: Space, where: str) -> list[Problem]:
    """Return what is wrong at the ends of each dimension, the others at their first values."""
    middle = {dimension.name: dimension.examples[0] for dimension in space.dimensions}
    points = [middle]
    for dimension in space.dimensions:
        points += [{**middle, dimension.name: value} for value in dimension.examples[1:]]
    problems: list[Problem] = []
    for values in points:
        try:
            parse_request(space.request(values), max_checkpoints=10**6)
        except InvalidRequestError as error:
            problems += [_placed(problem, where) for problem in error.as_problems()]
    return problems


def _placed(problem: Problem, where: str) -> Problem:
    """Return a merge's problem with the study's field."""
    param = problem.param or "method"
    if param.partition("[")[0].partition(".")[0] in {"method", "parameters", "rules"}:
        param = where + param
    return Problem(problem.message, param)


def _measured(request: StudyRequest, problems: list[Problem]) -> tuple[Measure, ...]:
    places = {f"objectives[{i}]": text for i, text in enumerate(request.minimised)}
    found = tuple(_measures(request, places, problems))
    if len({(one.sets, one.average) for one in found}) < len(found):
        problems.append(Problem("An objective is given twice.", "objectives"))
    return found


def _limited(
    request: StudyRequest, experts: Sequence[str], problems: list[Problem]
) -> tuple[tuple[Constraint, Measure], ...]:
    known = [*(["base"] if request.base else []), *experts]
    known += [reference.name for reference in request.references]
    for index, one in enumerate(request.constraints):
        if one.max_regression is not None and one.against not in known:
            message = f'There is no "{one.against}".{did_you_mean(one.against, known)}'
            message += f" Known: {', '.join(known)}."
            problems.append(Problem(message, f"constraints[{index}].against"))
    places = {f"constraints[{i}].set": one.set for i, one in enumerate(request.constraints)}
    return tuple(zip(request.constraints, _measures(request, places, problems), strict=False))


def _measures(
    request: StudyRequest, places: Mapping[str, str], problems: list[Problem]
) -> Iterator[Measure]:
    """Yield what each text names; adds what names nothing to `problems`, with its place."""
    for place, text in places.items():
        try:
            yield request.measure(text)
        except ValueError as error:
            problems.append(Problem(f"{error}.", place))


def _trials(request: StudyRequest, spaces: Sequence[Space], problems: list[Problem]) -> int:
    """Return the number of trials; adds what the strategy cannot search to `problems`."""
    search = request.search
    dimensions = [
        (f"candidates[{index}]", dimension)
        for index, space in enumerate(spaces)
        for dimension in space.dimensions
    ]
    if search.strategy == "cma_es" and (
        len(spaces) > 1 or not dimensions or any(d.range is None for _, d in dimensions)
    ):
        message = "cma_es searches ranges of one candidate; use tpe for choices and several."
        problems.append(Problem(message, "search.strategy"))
    if search.strategy == "cma_es" and len(request.objectives) > 1:
        message = "cma_es takes one objective; use nsga2 or tpe for several."
        problems.append(Problem(message, "search.strategy"))
    if not dimensions:
        # Every point is a candidate: nothing is left to search.
        return min(len(spaces), search.trials or len(spaces))
    if search.strategy != "grid":
        return search.trials or DEFAULT_TRIALS
    for place, dimension in dimensions:
        if not dimension.steps:
            message = "A grid needs a step for each range; add `step`, or give a list."
            problems.append(Problem(message, f"{place}: {dimension.name}"))
    points = sum(space.size for space in spaces)
    if points > MOST_TRIALS:
        message = f"The grid has {points:,} points; at most {MOST_TRIALS:,} are allowed."
        problems.append(Problem(message, "candidates"))
    return min(points, search.trials or points)
