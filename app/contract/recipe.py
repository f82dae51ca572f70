"""The recipe of a merge: a validated request with every name and parameter filled in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from app.contract.calibration import CalibrationSpec
from app.contract.catalogue import (
    CATALOGUE,
    MethodParameters,
    parse_method,
    parse_parameters,
    validate_weights,
)
from app.contract.catalogue.method import Statistic
from app.contract.errors import AfluenteError, InvalidRequestError, Problem
from app.contract.mergekit import from_mergekit, is_mergekit
from app.contract.problems import did_you_mean, problems_of
from app.contract.requests import RESERVED_NAMES, MergeRequest, OutputSpec, Rule

KEEP_BASE = "keep_base"


class Source(BaseModel):
    """A checkpoint as the recipe names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    name: str
    weight: float = 1.0
    form: Literal["difference"] | None = None


class Recipe(BaseModel):
    """Everything that determines a merge's result; stored with the merge and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Source | None
    checkpoints: tuple[Source, ...]
    method: str
    parameters: dict[str, Any]
    rules: tuple[Rule, ...]
    seed: int
    output: OutputSpec
    calibration: CalibrationSpec | None = None

    @property
    def method_parameters(self) -> MethodParameters:
        """The method's parameters as their class."""
        return CATALOGUE[self.method].model_validate(self.parameters)

    @property
    def statistics(self) -> frozenset[Statistic]:
        """What its methods read of the calibration sets."""
        used = [self.method_parameters]
        used += [
            CATALOGUE[rule.method].model_validate(rule.parameters)
            for rule in self.rules
            if rule.method != KEEP_BASE
        ]
        return frozenset(one.statistic for one in used if one.statistic is not None)

    @property
    def weights(self) -> tuple[float, ...]:
        """The merging weights, in the order of the checkpoints."""
        return tuple(source.weight for source in self.checkpoints)


@dataclass(frozen=True)
class ParsedRequest:
    """A validated request and its recipe."""

    request: MergeRequest
    recipe: Recipe

    @property
    def uris(self) -> tuple[str, ...]:
        """All URIs in the request: base, checkpoints and manifests."""
        named = [self.recipe.base] if self.recipe.base else []
        evaluation = self.request.evaluation
        measured = evaluation.uris if evaluation else ()
        heard = self.recipe.calibration.uris if self.recipe.calibration else ()
        sources = (source.uri for source in (*named, *self.recipe.checkpoints))
        return (*sources, *heard, *measured)

    @property
    def fingerprint(self) -> str:
        """Digest of the validated request; equal for equivalent JSON and YAML."""
        document = self.request.model_dump(mode="json") | {"parameters": self.recipe.parameters}
        text = json.dumps(document, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_request(document: Any, *, max_checkpoints: int = 32) -> ParsedRequest:
    """Return the request and its recipe; InvalidRequestError lists everything that is wrong.

    A mergekit configuration is converted first.
    """
    if is_mergekit(document):
        # The base may be listed too.
        _refuse_too_many(document, "models", max_checkpoints + 1)
        document = from_mergekit(document)
    _refuse_too_many(document, "checkpoints", max_checkpoints)
    try:
        request = MergeRequest.model_validate(document)
    except ValidationError as error:
        found = problems_of(error, MergeRequest)
        raise InvalidRequestError.of(found + _unknown_method(document)) from None
    problems: list[Problem] = []
    parameters = _checked_method(request, problems)
    rules = tuple(_checked_rule(request, index, problems) for index in range(len(request.rules)))
    if request.base is None:
        message = "A difference needs the base that was subtracted."
        problems += [
            Problem(message, f"checkpoints[{index}].form")
            for index, ref in enumerate(request.checkpoints)
            if ref.form == "difference"
        ]
    if request.base is None and request.output.form == "lora":
        message = "An adapter needs the base that it changes."
        problems.append(Problem(message, "output.form"))
    names = _unique_names(request, problems)
    _check_calibration(request, names, problems)
    if problems:
        raise InvalidRequestError.of(problems)
    base = request.base and Source(uri=request.base.uri, name="base")
    checkpoints = tuple(
        Source(
            uri=ref.uri, name=name, weight=1.0 if ref.weight is None else ref.weight, form=ref.form
        )
        for ref, name in zip(request.checkpoints, names, strict=True)
    )
    recipe = Recipe(
        base=base,
        checkpoints=checkpoints,
        method=request.method,
        parameters=parameters,
        rules=rules,
        seed=request.seed,
        output=request.output,
        calibration=request.calibration,
    )
    return ParsedRequest(request, recipe)


def _refuse_too_many(document: Any, name: str, max_checkpoints: int) -> None:
    """Raise InvalidRequestError for too many checkpoints, before parsing any of them."""
    given = document.get(name) if isinstance(document, Mapping) else None
    if isinstance(given, list | tuple) and len(given) > max_checkpoints:
        message = (
            f"{len(given):,} checkpoints; at most {max_checkpoints} are allowed "
            "(AFLUENTE_MAX_CHECKPOINTS)."
        )
        raise InvalidRequestError.of([Problem(message, name)])


def _unknown_method(document: Any) -> list[Problem]:
    """Return the problem with the method's name, for a request that failed validation."""
    method = document.get("method") if isinstance(document, Mapping) else None
    if not isinstance(method, str):
        return []
    try:
        parse_method(method)
    except AfluenteError as error:
        return list(error.as_problems())
    return []


def _checked_method(request: MergeRequest, problems: list[Problem]) -> dict[str, Any]:
    """Return the complete parameters of the main method; add what is wrong to `problems`."""
    return _checked(request, request.method, request.parameters, "", problems)


def _checked_rule(request: MergeRequest, index: int, problems: list[Problem]) -> Rule:
    rule = request.rules[index]
    prefix = f"rules[{index}]."
    if rule.method == KEEP_BASE:
        for field in ("parameters", "weights"):
            if getattr(rule, field):
                problems.append(Problem(f"keep_base takes no {field}.", f"{prefix}{field}"))
        return rule
    _check_rule_weights(request, rule, prefix, problems)
    parameters = _checked(
        request, rule.method, rule.parameters, prefix, problems, own_weights=rule.weights
    )
    return rule.model_copy(update={"parameters": parameters})


def _checked(
    request: MergeRequest,
    method: str,
    given: Mapping[str, Any],
    prefix: str,
    problems: list[Problem],
    *,
    own_weights: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    try:
        kind = parse_method(method, param=f"{prefix}method")
    except AfluenteError as error:
        problems.extend(error.as_problems())
        return {}
    _check_fit(request, kind, prefix, problems)
    if request.output.form == "lora" and (kind.space != "task_vectors" or kind.counts_base):
        message = (
            f"{kind.name} does not merge task vectors, so that its result is no change of low rank "
            'of the base; output.form "lora" needs a method that does, such as task_arithmetic.'
        )
        problems.append(Problem(message, f"{prefix}method"))
    try:
        parameters = parse_parameters(method, given, param=f"{prefix}parameters")
    except InvalidRequestError as error:
        problems.extend(error.as_problems())
        return {}
    weights = [ref.weight for ref in request.checkpoints]
    # A rule without weights of its own has the recipe's, which its method may ignore.
    used = not prefix or (kind.uses_weights and own_weights is None)
    if used and any(weight is not None for weight in weights):
        problems.extend(validate_weights(parameters, weights))
    return parameters.model_dump(mode="json")


def _check_rule_weights(
    request: MergeRequest, rule: Rule, prefix: str, problems: list[Problem]
) -> None:
    """Add to `problems` what is wrong with the weights that a rule gives its tensors."""
    if rule.weights is None or rule.method not in CATALOGUE:
        return
    count = len(request.checkpoints)
    if len(rule.weights) != count:
        message = f"{len(rule.weights)} weights for {_checkpoints(count)}; give one for each."
        problems.append(Problem(message, f"{prefix}weights"))
        return
    parameters = CATALOGUE[rule.method].model_construct(**rule.parameters)
    messages = dict.fromkeys(p.message for p in validate_weights(parameters, rule.weights))
    problems.extend(Problem(message, f"{prefix}weights") for message in messages)


def _check_fit(
    request: MergeRequest, kind: type[MethodParameters], prefix: str, problems: list[Problem]
) -> None:
    count = len(request.checkpoints)
    if kind.base == "required" and request.base is None:
        problems.append(
            Problem(
                f"{kind.name} needs the base that the checkpoints were fine-tuned from.", "base"
            )
        )
    least, most = kind.min_experts, kind.max_experts
    if kind.counts_base and request.base is not None:
        least, most = least - 1, most and most - 1
    if count < least:
        message = f"{kind.name} needs at least {_checkpoints(least)}; {count} given."
        problems.append(Problem(message + _of_base(kind, request), "checkpoints"))
    if most is not None and count > most:
        message = f"{kind.name} takes at most {_checkpoints(most)}; {count} given."
        problems.append(Problem(message + _of_base(kind, request), "checkpoints"))


def _check_calibration(request: MergeRequest, names: list[str], problems: list[Problem]) -> None:
    """Add to `problems` what is wrong with the calibration sets: all methods that need one do."""
    used = dict.fromkeys([request.method, *(rule.method for rule in request.rules)])
    needing = [name for name in used if name in CATALOGUE and CATALOGUE[name].needs_calibration]
    given = request.calibration
    if given is None:
        if needing:
            message = (
                f"{needing[0]} needs speech of each expert's domain with its references: "
                'give {"datasets": [{"name": ..., "uri": ..., "expert": ...}]}.'
            )
            problems.append(Problem(message, "calibration"))
        return
    if not needing:
        known = ", ".join(name for name, kind in CATALOGUE.items() if kind.needs_calibration)
        message = f"{request.method} uses no calibration sets; remove them. These do: {known}."
        problems.append(Problem(message, "calibration"))
    for index, one in enumerate(given.datasets):
        if one.expert is not None and one.expert not in names:
            message = f'There is no expert "{one.expert}".{did_you_mean(one.expert, names)}'
            message += f" Experts: {', '.join(names)}."
            problems.append(Problem(message, f"calibration.datasets[{index}].expert"))
    lacking = [name for name in names if not given.of(name)]
    if lacking:
        message = f"No set is for {', '.join(lacking)}; every expert needs one."
        problems.append(Problem(message, "calibration.datasets"))


def _checkpoints(count: int) -> str:
    return f"{count} checkpoint{'' if count == 1 else 's'}"


def _of_base(kind: type[MethodParameters], request: MergeRequest) -> str:
    if not kind.counts_base:
        return ""
    return " The base is one of the merged models." if request.base else " A base counts as one."


def _unique_names(request: MergeRequest, problems: list[Problem]) -> list[str]:
    """Return a name for each checkpoint; derived names get suffixes, given ones must differ."""
    taken = set(RESERVED_NAMES)
    for index, ref in enumerate(request.checkpoints):
        if ref.name is not None:
            if ref.name in taken:
                where = f"checkpoints[{index}].name"
                problems.append(Problem(f'The name "{ref.name}" is given twice.', where))
            taken.add(ref.name)
    names = []
    for ref in request.checkpoints:
        name = ref.name or _suffixed(_last_segment(ref.uri), taken)
        taken.add(name)
        names.append(name)
    return names


def _suffixed(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def _last_segment(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:  # the resolver reports the invalid URI
        return "checkpoint"
    path = unquote(f"{parts.netloc}{parts.path}" if parts.scheme else uri)
    segment = path.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0]
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", segment).strip("-._")
    return clean[:100] or "checkpoint"
