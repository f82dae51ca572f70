"""Turns a URI into a checkpoint that is pinned and described, reading headers only."""

from __future__ import annotations

from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path

from app.contract.errors import (
    AfluenteError,
    ConflictError,
    NotFoundError,
    Problem,
    SourceChangedError,
    SourceError,
    SourceNotFoundError,
)
from app.sources.checkpoint import ResolvedCheckpoint, SourceFile
from app.sources.layout import SourceFolder, read_contents
from app.sources.local import LocalFolder, open_unchanged
from app.sources.policy import SourcePolicy
from app.sources.remote import HubFolder, WebFolder
from app.sources.uris import FilePlace, HubPlace, MergePlace, Place, WebPlace, file_uri, parse_uri
from app.sources.web import WebClient


def resolve(uri: str, policy: SourcePolicy, *, param: str | None = None) -> ResolvedCheckpoint:
    """Return the checkpoint at a URI: revision pinned, config and all headers read and checked.

    Raises:
        SourceError: with `param` as given; an InvalidCheckpointError lists all that is wrong.

    """
    try:
        return _resolve(uri, policy, param)
    except SourceError as error:
        raise with_param(error, param) from None


def with_param(error: AfluenteError, param: str | None) -> AfluenteError:
    """Return the same error, pointing at a field of the request."""
    problems = [Problem(problem.message, param) for problem in error.problems]
    return type(error)(error.message, param=param, problems=problems)


def read_file(checkpoint: ResolvedCheckpoint, file: SourceFile, policy: SourcePolicy) -> bytes:
    """Return a companion's content, which is small; SourceChangedError if it is not as it was."""
    label = f"{checkpoint.uri}: {file.name}"
    try:
        if file.path is None:
            assert file.url is not None
            hub = checkpoint.resolved.startswith("hf://")
            with WebClient(policy, hub=hub) as client:
                content = client.read_prefix(file.url, file.size + 1, label).data
            unchanged = len(content) == file.size
        else:
            assert file.signature is not None
            with BufferedReader(open_unchanged(file.path, file.signature, label)) as stream:
                content = stream.read(file.size + 1)
                unchanged = len(content) == file.size
    except OSError as error:
        raise SourceNotFoundError(f"{label} cannot be read ({error.strerror})") from None
    if not unchanged:
        raise SourceChangedError(f"{label} changed since the checkpoint was looked at")
    return content


def _resolve(uri: str, policy: SourcePolicy, param: str | None) -> ResolvedCheckpoint:
    place = parse_uri(uri, policy)
    with ExitStack() as stack:
        folder, resolved = _open(uri, place, policy, stack)
        contents = read_contents(folder, policy.max_source_bytes)
    return ResolvedCheckpoint(
        uri=uri,
        resolved=resolved,
        name=place.name,
        config=contents.config,
        tensors=contents.tensors,
        files=contents.files,
        documents=contents.documents,
        metadata=contents.metadata,
        languages=contents.languages,
        param=param,
    )


def _open(
    uri: str, place: Place, policy: SourcePolicy, stack: ExitStack
) -> tuple[SourceFolder, str]:
    """Return the folder and the pinned URI; `stack` closes its connections."""
    match place:
        case FilePlace():
            folder = LocalFolder(place.path, policy.file_roots, uri)
            return folder, file_uri(folder.path)
        case MergePlace():
            # The artifact store is the service's own: the roots are for what users name.
            return LocalFolder(_merge_folder(place, policy, uri), None, uri), uri.rstrip("/")
        case HubPlace():
            hub = HubFolder(place, policy, stack.enter_context(WebClient(policy, hub=True)), uri)
            return hub, hub.resolved
        case WebPlace():
            client = stack.enter_context(WebClient(policy, hub=False))
            return WebFolder(place.url, client, uri), place.url


def _merge_folder(place: MergePlace, policy: SourcePolicy, uri: str) -> Path:
    if policy.merge_folder is None:
        raise SourceNotFoundError(f"{uri}: there are no earlier merges here")
    try:
        return policy.merge_folder(place.merge_id)
    except (NotFoundError, ConflictError) as error:
        raise SourceNotFoundError(f"{uri}: {error.message}") from None
