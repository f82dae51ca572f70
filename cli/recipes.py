"""Reads recipe files: the JSON body of `POST /merges`, or the same in YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.contract.errors import MalformedBodyError, SourceNotFoundError


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the document in a JSON or YAML file (`-`: standard input).

    Raises SourceNotFoundError or MalformedBodyError that say what is wrong, and in which line.
    """
    document = _parse(_read(path), path)
    if not isinstance(document, dict):
        raise MalformedBodyError(
            f"{path} does not hold a recipe: it must be an object with the fields of "
            "POST /merges (checkpoints, method, ...)."
        )
    return document


def with_absolute_paths(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with plain paths turned into file:// URIs, for the service to read."""
    recipe = dict(document)
    if recipe.get("base"):
        recipe["base"] = _located(recipe["base"])
    if isinstance(recipe.get("checkpoints"), list):
        recipe["checkpoints"] = [_located(item) for item in recipe["checkpoints"]]
    evaluation = recipe.get("evaluation")
    if isinstance(evaluation, Mapping) and isinstance(evaluation.get("datasets"), list):
        datasets = [_located(item) for item in evaluation["datasets"]]
        recipe["evaluation"] = {**evaluation, "datasets": datasets}
    return recipe


def _located(source: object) -> object:
    if isinstance(source, Mapping):
        return {**source, "uri": _located(source["uri"])} if "uri" in source else source
    if isinstance(source, str) and "://" not in source and not source.startswith("file:"):
        return Path(source).expanduser().resolve().as_uri()
    return source


def _read(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceNotFoundError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise MalformedBodyError(f"The recipe {path} is not text in UTF-8.") from None


def _parse(text: str, path: Path) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if path.suffix == ".json":
            raise MalformedBodyError(
                f"{path} is not JSON: {error.msg}, line {error.lineno}, column {error.colno}."
            ) from None
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MalformedBodyError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
