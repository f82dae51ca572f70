"""Parses untrusted JSON and YAML: no duplicate keys, aliases, deep nesting or NaN."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

import yaml

from app.contract.errors import MalformedBodyError
from app.contract.problems import shown

MAX_DEPTH = 32
# A request has some hundreds. Parsing a YAML value takes 4 µs, during which no other thread runs.
MAX_VALUES = 50_000
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML = "tag:yaml.org,2002:"
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)


def parse_document(content: bytes, form: Literal["json", "yaml"]) -> Any:
    """Return the content of a JSON or YAML document; equivalent documents give equal results.

    Raises MalformedBodyError for invalid UTF-8 or syntax, duplicate keys, YAML anchors, aliases,
    tags and directives, more than 32 levels or 50,000 values, NaN, infinity, or NUL in a string.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"The body is not UTF-8 (byte {error.start + 1}).") from None
    if not text.strip():
        raise MalformedBodyError("The body is empty; send a JSON or YAML object.")
    document = _parse_json(text) if form == "json" else _parse_yaml(text)
    _check(document)
    return document


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedBodyError(f"The body is not JSON: {error.msg} ({where}).") from None
    except ValueError as error:  # an integer of thousands of digits
        raise MalformedBodyError(f"The body is not JSON: {error}.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise MalformedBodyError(f'The key "{name[:100]}" is given twice in one object.')
        found[name] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise MalformedBodyError(f"The body is not JSON: {name} is not a JSON number.")


class _Loader(_Base):
    """YAML 1.2's core schema: `no` is a word, `1e-3` a number, a date a string, as in JSON."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def _construct_mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    pairs = []
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise MalformedBodyError(
                f"The body's key {shown(key)} (line {key_node.start_mark.line + 1}) must be a "
                "string."
            )
        pairs.append((key, loader.construct_object(value_node, deep=True)))
    return _object(pairs)


def _construct_int(loader: Any, node: yaml.ScalarNode) -> int:
    return int(node.value)


def _construct_float(loader: Any, node: yaml.ScalarNode) -> float:
    return float(node.value)


_Loader.add_constructor(f"{_YAML}map", _construct_mapping)
_Loader.add_constructor(f"{_YAML}int", _construct_int)
_Loader.add_constructor(f"{_YAML}float", _construct_float)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(f"{_YAML}{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _parse_yaml(text: str) -> Any:
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise _too_deep() from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise MalformedBodyError(f"The body is not YAML: {reason}{where}.") from None
    except ValueError as error:
        raise MalformedBodyError(f"The body is not YAML: {error}.") from None


def _check_events(text: str) -> None:
    """Refuse unbounded growth and nesting before any object is constructed."""
    if directive := _DIRECTIVE.search(text):
        # libyaml compares each directive with all earlier ones: quadratic time.
        line = text.count("\n", 0, directive.start()) + 1
        raise MalformedBodyError(f"YAML directives are not accepted (line {line}).")
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise MalformedBodyError(
                f"YAML anchors and aliases are not accepted (line {line}); write the value out."
            )
        if getattr(event, "tag", None):
            raise MalformedBodyError(f"YAML tags are not accepted (line {line}).")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        if count > 2 * MAX_VALUES:  # keys are events too
            raise _too_many()


def _check(document: Any) -> None:
    level: list[Any] = [document]
    count = 0
    for depth in range(MAX_DEPTH + 1):
        following: list[Any] = []
        for value in level:
            if isinstance(value, dict | list) and depth == MAX_DEPTH:
                raise _too_deep()
            if isinstance(value, dict):
                _check_scalars(value)
                following += value.values()
            elif isinstance(value, list):
                following += value
            else:
                _check_scalars([value])
        count += len(following)
        if count > MAX_VALUES:
            raise _too_many()
        level = following


def _check_scalars(values: Any) -> None:
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise MalformedBodyError("The body contains a number too large to be represented.")
        if isinstance(value, str) and ("\0" in value or not _encodable(value)):
            # The database cannot store either.
            raise MalformedBodyError("A string contains NUL or half of a surrogate pair.")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_many() -> MalformedBodyError:
    return MalformedBodyError(f"The body contains more than {MAX_VALUES:,} values.")


def _too_deep() -> MalformedBodyError:
    return MalformedBodyError(f"The body is nested more than {MAX_DEPTH} levels deep.")
