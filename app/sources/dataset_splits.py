"""Chooses the files of a config and a split among those of a Hugging Face dataset."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from app.contract.errors import InvalidManifestError
from app.sources.dataset_queries import DatasetQuery

_SHARD = re.compile(r"(?P<split>[\w.]+?)-\d{5}-of-\d{5}\b[^/]*", re.ASCII)
# As in the library `datasets`, the names that files and folders give to splits.
_KEYWORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "dev": "validation", "val": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_NO_CONFIG = ("", "data", "default")
_FRONT_MATTER = re.compile(rb"---\r?\n(.*?)\r?\n---", re.DOTALL)


def choose(label: str, names: Iterable[str], query: DatasetQuery, readme: bytes = b"") -> list[str]:
    """Return the names of the split's files, in order; InvalidManifestError lists the choices.

    The README.md's `configs` decide where it has them, otherwise the files' names.
    """
    listed = sorted(names)
    configs = _configs(readme, listed) or _configs_by_name(listed)
    splits = pick(label, "config", configs, query.config)
    return list(pick(label, "split", splits, query.split))


def canonical(split: str | None) -> str | None:
    """Return the name that `datasets` gives to a split: validation for dev."""
    return split and _KEYWORDS.get(split, split)


def split_of(name: str) -> str | None:
    """Return the split that a file's path names."""
    path = PurePosixPath(name)
    if shard := _SHARD.fullmatch(path.name):
        return canonical(shard["split"])
    words = re.split(r"[^A-Za-z0-9]+", "/".join((path.stem, *reversed(path.parts[:-1]))))
    return next((_KEYWORDS[word] for word in words if word in _KEYWORDS), None)


def _configs_by_name(names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        folders = PurePosixPath(name).parts[:-1]
        config = next((f for f in folders if f not in _NO_CONFIG and f not in _KEYWORDS), "")
        found.setdefault(config, {}).setdefault(split_of(name) or "all", []).append(name)
    return found


def _configs(readme: bytes, names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    front = _FRONT_MATTER.match(readme.removeprefix(b"\xef\xbb\xbf"))
    try:
        document = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    entries = document.get("configs") if isinstance(document, dict) else None
    found = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("config_name"), str):
            splits = _splits(entry.get("data_files"), names)
            if splits:
                found[entry["config_name"]] = splits
    return found


def _splits(data_files: Any, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of a config's `data_files`: patterns, or a split and patterns each."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    entries = data_files if isinstance(data_files, list) else [data_files]
    found: dict[str, list[str]] = {}
    for entry in entries:
        named = isinstance(entry, dict)
        paths = entry.get("path") if named else entry
        for path in paths if isinstance(paths, list) else [paths]:
            for name in fnmatch.filter(names, path) if isinstance(path, str) else ():
                split = str(entry.get("split")) if named else split_of(name) or "all"
                found.setdefault(split, []).append(name)
    return found


def pick(label: str, what: str, choices: Mapping[str, Any], asked: str | None) -> Any:
    """Return the config or split asked for, or the only one; InvalidManifestError lists all."""
    for name in (asked or "", *choices):
        if name in choices and canonical(name) == canonical(asked):
            return choices[name]
    shown = ", ".join(sorted(choices))[:300] or "none"
    if asked is not None:
        raise InvalidManifestError(f"{label}: there is no {what} {asked[:100]}; there is {shown}")
    if len(choices) == 1:
        return next(iter(choices.values()))
    if what == "config" and "default" in choices:
        return choices["default"]
    example = "test" if "test" in choices else next(iter(sorted(choices)), "test")
    raise InvalidManifestError(
        f"{label}: several {what}s are there ({shown}); choose one with ?{what}={example}"
    )
