"""What a checkpoint has besides weights, and what it takes from another where it lacks it.

A Trainer's `checkpoint-N` often has neither tokenizer nor feature extractor. Nothing is ever made
up for it: they are those of the model that was trained, or the checkpoint is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BufferedReader
from typing import TYPE_CHECKING, Any

from app.sources.architectures.architecture import CONFIG
from app.sources.checkpoint import ResolvedCheckpoint

if TYPE_CHECKING:
    from app.sources.fetch import LocalCheckpoint


def missing(checkpoint: ResolvedCheckpoint) -> list[str]:
    """Return what the checkpoint lacks and nobody merges without, as errors say it."""
    lacks = checkpoint.architecture.lacks(checkpoint)
    return [lack.needed for lack in lacks if lack.needed and not lack.merges]


def undecoded(checkpoint: ResolvedCheckpoint) -> str | None:
    """Return why a checkpoint's files do not suffice to decode with it; None if they do."""
    architecture = checkpoint.architecture
    lacks = [lack.needed for lack in architecture.lacks(checkpoint) if lack.needed]
    problems = [f"it has {' and '.join(lacks)}"] if lacks else []
    problems += architecture.decoding_problems(checkpoint.config, checkpoint.documents)
    if not problems:
        return None
    return (
        f"{checkpoint.uri} can be merged but not evaluated: {'; '.join(problems)}. Copy the files "
        "from the model that was fine-tuned, or leave the evaluation out."
    )


def lacking(checkpoint: ResolvedCheckpoint) -> tuple[str, ...]:
    """Return the files that the checkpoint may take from another.

    The files of a tokenizer belong together: all of them are here, or none.
    """
    lacks = checkpoint.architecture.lacks(checkpoint)
    return tuple(name for lack in lacks for name in lack.files)


def borrowed(checkpoint: ResolvedCheckpoint, lender: ResolvedCheckpoint) -> tuple[str, ...]:
    """Return those of the lacking files that the lender has."""
    there = {file.name for file in lender.files}
    return tuple(name for name in lacking(checkpoint) if name in there)


def companions_of(
    checkpoint: ResolvedCheckpoint,
    lender: ResolvedCheckpoint | None = None,
    *,
    dtype: str | None = None,
) -> dict[str, bytes]:
    """Return the JSON files that an artifact has, or a folder to decode from, by name.

    They hold what the architecture keeps, and `dtype` if it is given; what the checkpoint lacks is
    the lender's. The files that are copied are not among them.
    """
    lacks = lacking(checkpoint)
    documents = {n: d for n, d in checkpoint.documents.items() if n not in lacks}
    if lender is not None:
        documents |= {n: d for n, d in lender.documents.items() if n in lacks}
    made = checkpoint.architecture.companions(checkpoint.config, documents)
    if dtype is not None:
        # transformers 5 reads the one, transformers 4 the other.
        made[CONFIG] = {**made[CONFIG], "dtype": dtype, "torch_dtype": dtype}
    return {name: encoded(document) for name, document in made.items()}


def copied_names(checkpoint: ResolvedCheckpoint) -> tuple[str, ...]:
    """Return those of its files that an artifact has byte for byte, in order."""
    names, lacks = {file.name for file in checkpoint.files}, lacking(checkpoint)
    copied = checkpoint.architecture.copied
    return tuple(name for name in copied if name in names and name not in lacks)


def copied_files(local: LocalCheckpoint) -> dict[str, bytes]:
    """Return the files that are copied, by name; SourceChangedError if one changed."""
    found = {}
    for name in copied_names(local.resolved):
        with BufferedReader(local.open(name)) as stream:
            found[name] = stream.read(local.resolved.architecture.max_bytes[name])
    return found


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return a JSON file, the same for equal documents."""
    return (json.dumps(document, indent=2) + "\n").encode("ascii")
