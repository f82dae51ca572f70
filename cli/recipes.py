"""Reads recipe files: the body of `POST /merges` or `POST /studies` in JSON or YAML."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from app.contract.errors import MalformedBodyError, SourceNotFoundError
from app.contract.mergekit import from_mergekit, is_mergekit
from app.services.documents import parse_document
from app.sources.schemes import scheme_of

Form = Literal["json", "yaml"]


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the document in a JSON or YAML file (`-`: standard input), parsed as by the API.

    Raises SourceNotFoundError, or MalformedBodyError with the line.
    """
    content = _read(path)
    form: Form = "json" if path.suffix == ".json" or content.lstrip()[:1] in b"{[" else "yaml"
    try:
        document = parse_document(content, form)
    except MalformedBodyError as error:
        raise MalformedBodyError(f"{path}: {error.message}") from None
    if not isinstance(document, dict):
        raise MalformedBodyError(
            f"{path} is not a recipe: it must be an object with the fields of POST /merges "
            "(checkpoints, method, ...)."
        )
    return document


def with_absolute_paths(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with paths converted to file:// URIs, for the service."""
    recipe = from_mergekit(document) if is_mergekit(document) else dict(document)
    if recipe.get("base"):
        recipe["base"] = _located(recipe["base"])
    for name in ("checkpoints", "references"):
        if isinstance(recipe.get(name), list):
            recipe[name] = [_located(item) for item in recipe[name]]
    for name in ("evaluation", "development", "test"):
        measured = recipe.get(name)
        if isinstance(measured, Mapping):
            recipe[name] = dict(measured)
            for field in ("datasets", "references"):
                if isinstance(measured.get(field), list):
                    recipe[name][field] = [_located(item) for item in measured[field]]
    return recipe


def _located(source: object) -> object:
    if isinstance(source, Mapping):
        return {**source, "uri": _located(source["uri"])} if "uri" in source else source
    if isinstance(source, str) and scheme_of(source) is None:
        # Path.expanduser would raise for `~nobody`.
        return Path(os.path.expanduser(source)).resolve().as_uri()  # noqa: PTH111
    return source


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceNotFoundError(f"The recipe {path} cannot be read: {error.strerror}.") from None
