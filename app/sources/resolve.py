"""Resolves a URI to a pinned checkpoint, reading configs and headers only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from app.contract.errors import (
    AfluenteError,
    Problem,
    SourceChangedError,
    SourceError,
)
from app.sources.architectures.registry import architecture_of
from app.sources.checkpoint import ResolvedCheckpoint, SourceFile
from app.sources.key_prefixes import without_prefix
from app.sources.layout import read_contents
from app.sources.local import read_unchanged
from app.sources.policy import SourcePolicy
from app.sources.schemes import open_folder


def resolve(
    uri: str, policy: SourcePolicy, *, param: str | None = None, difference: bool = False
) -> ResolvedCheckpoint:
    """Return the checkpoint at a URI, its revision pinned, its config and headers checked.

    Of a `difference` only the weights are looked at.

    Raises:
        SourceError: with `param` as given; an InvalidCheckpointError lists all that is wrong.

    """
    try:
        return _resolve(uri, policy, param, difference)
    except SourceError as error:
        raise with_param(error, param) from None


def with_param(error: AfluenteError, param: str | None) -> AfluenteError:
    """Return the same error, pointing at a field of the request."""
    problems = [Problem(problem.message, param) for problem in error.problems]
    return type(error)(error.message, param=param, problems=problems)


def read_file(checkpoint: ResolvedCheckpoint, file: SourceFile, policy: SourcePolicy) -> bytes:
    """Return a small file's content; SourceChangedError if it changed since it was resolved."""
    label = f"{checkpoint.uri}: {file.name}"
    if file.path is None:
        with open_folder(checkpoint.resolved, policy, checkpoint.uri) as folder:
            content = folder.read_prefix(file, file.size + 1)
    else:
        assert file.signature is not None
        content = read_unchanged(file.path, file.signature, file.size + 1, label)
    if len(content) != file.size:
        raise SourceChangedError(f"{label} changed since the checkpoint was looked at")
    return content


def _resolve(
    uri: str, policy: SourcePolicy, param: str | None, difference: bool
) -> ResolvedCheckpoint:
    with open_folder(uri, policy) as folder:
        resolved = folder.resolved
        contents = read_contents(folder, policy.max_source_bytes, weights_alone=difference)
    config = contents.description.config
    tensors, prefix = without_prefix(contents.tensors, known_names(config))
    return ResolvedCheckpoint(
        uri=uri,
        resolved=resolved,
        name=folder.name,
        config=config,
        tensors=tensors,
        files=contents.files,
        documents=contents.description.documents,
        metadata=contents.metadata,
        languages=contents.description.languages,
        param=param,
        adapter=contents.adapter,
        difference=difference,
        prefix=prefix,
    )


def known_names(config: Mapping[str, Any]) -> Collection[str]:
    """Return the names of all tensors, if the architecture knows them."""
    family = architecture_of(config)
    return () if family.config_problems(config) else family.expected_shapes(config) or ()
