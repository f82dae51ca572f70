"""What a checkpoint has besides weights, and what it takes from another where it lacks it.

A Trainer's `checkpoint-N` often has neither tokenizer nor feature extractor. Nothing is ever made
up for it: they are those of the model that was trained, or the checkpoint is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BufferedReader
from typing import TYPE_CHECKING, Any

from app.sources import generation
from app.sources.checkpoint import ResolvedCheckpoint
from app.sources.configs import (
    CONFIG,
    FEATURE_FILES,
    MAX_BYTES,
    PREPROCESSOR,
    TOKENIZER_CONFIG,
    feature_documents,
    model_config_of,
    tokenizer_config_of,
)

if TYPE_CHECKING:
    from app.sources.fetch import LocalCheckpoint

# What goes over to the byte, if it passes app/sources/tokenizers.py.
COPIED = ("tokenizer.json", "vocab.json", "merges.txt")
TOKENIZER_FILES = (
    *COPIED,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
)


def has_tokenizer(checkpoint: ResolvedCheckpoint) -> bool:
    """Return whether it has tokenizer.json, or vocab.json and merges.txt."""
    names = {file.name for file in checkpoint.files}
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names


def states_ids(checkpoint: ResolvedCheckpoint) -> bool:
    """Return whether it says which ids its tokens have, by a tokenizer or a part of one."""
    return any(file.name in {"tokenizer.json", "vocab.json"} for file in checkpoint.files)


def missing(checkpoint: ResolvedCheckpoint) -> list[str]:
    """Return what nobody can decode without and the checkpoint lacks, as errors say it."""
    lacking = []
    if not has_tokenizer(checkpoint):
        lacking.append("no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    if PREPROCESSOR not in checkpoint.documents:
        lacking.append(f"no feature extractor ({' or '.join(FEATURE_FILES)})")
    return lacking


def is_incomplete(checkpoint: ResolvedCheckpoint) -> bool:
    """Return whether it may take files from another."""
    return bool(missing(checkpoint)) or generation.FILE not in checkpoint.documents


def borrowed(checkpoint: ResolvedCheckpoint, lender: ResolvedCheckpoint) -> tuple[str, ...]:
    """Return the files that the checkpoint lacks and takes from the lender, by name.

    The files of a tokenizer belong together: all are taken, or none.
    """
    groups = (
        (TOKENIZER_FILES, has_tokenizer(checkpoint)),
        (FEATURE_FILES, PREPROCESSOR in checkpoint.documents),
        ((generation.FILE,), generation.FILE in checkpoint.documents),
    )
    there = {file.name for file in lender.files}
    return tuple(name for names, has in groups if not has for name in names if name in there)


def companions_of(
    checkpoint: ResolvedCheckpoint, lender: ResolvedCheckpoint | None = None
) -> dict[str, bytes]:
    """Return the JSON files that an artifact has, or a folder to decode from, by name.

    They hold known fields only, in the form that transformers 4 and 5 both read; what the
    checkpoint lacks is the lender's. The files of COPIED are not among them.
    """
    documents = dict(checkpoint.documents)
    if lender is not None:
        taken = borrowed(checkpoint, lender)
        if not has_tokenizer(checkpoint):
            documents = {n: d for n, d in documents.items() if n not in TOKENIZER_FILES}
        if set(taken) & set(FEATURE_FILES):
            taken = (*taken, PREPROCESSOR)
        documents |= {name: lender.documents[name] for name in taken if name in lender.documents}
    config = checkpoint.config
    made: dict[str, Mapping[str, Any]] = {
        CONFIG: model_config_of(config),
        generation.FILE: generation.generation_config_of(documents.get(generation.FILE), config),
    }
    for name in TOKENIZER_FILES:
        if name in documents:
            made[name] = documents[name]
    if TOKENIZER_CONFIG in documents:
        made[TOKENIZER_CONFIG] = tokenizer_config_of(documents[TOKENIZER_CONFIG])
    if PREPROCESSOR in documents:
        made |= feature_documents(documents[PREPROCESSOR])
    return {name: encoded(document) for name, document in made.items()}


def copied_files(local: LocalCheckpoint) -> dict[str, bytes]:
    """Return the files that go over to the byte, by name; SourceChangedError if one changed."""
    found = {}
    for name in COPIED:
        if name in local.paths:
            with BufferedReader(local.open(name)) as stream:
                found[name] = stream.read(MAX_BYTES[name])
    return found


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return a JSON file, the same for equal documents."""
    return (json.dumps(document, indent=2) + "\n").encode("ascii")
