"""The published files of a merge: only those that its record lists, with matching digests."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from app.contract.errors import NotFoundError, SourceError, StorageError
from app.services.backend import Backend
from app.services.downloads import Download, OpenFile
from app.services.merges import find
from app.services.presentation import Row, artifact_resources, media_type
from app.services.resources import ArtifactPage
from app.sources.digests import DigestStore, local_sha256


def list_all(backend: Backend, merge_id: str) -> ArtifactPage:
    """Return the files of a merge; none unless it has succeeded."""
    return ArtifactPage(data=artifact_resources(find(backend, merge_id)))


def open_artifact(backend: Backend, merge_id: str, name: str) -> Download:
    """Return one file of a merge; NotFoundError unless its record lists the name."""
    row = find(backend, merge_id)
    entries = {entry["name"]: entry for entry in published(row)}
    if name not in entries:
        listed = ", ".join(entries)
        raise NotFoundError(
            f'The merge {merge_id} has no artifact "{name[:100]}". It has: {listed}.'
        )
    entry = entries[name]
    return Download(name, media_type(name), entry["sha256"], open_all(backend, row, [entry]))


def published(row: Row) -> list[Row]:
    """Return the file entries of a merge's record, sorted by name; NotFoundError if it has none."""
    if row["status"] != "succeeded" or row["artifact_folder"] is None:
        raise NotFoundError(
            f"The merge {row['id']} is {row['status']}; only a succeeded merge has artifacts."
        )
    return sorted(row["artifacts"], key=lambda entry: str(entry["name"]))


def open_all(backend: Backend, row: Row, entries: list[Row]) -> list[OpenFile]:
    """Open these files of a merge.

    Raises StorageError if one cannot be read or differs from the record, and NotFoundError if the
    merge has just been deleted.
    """
    folder = backend.store.published_folder(row["artifact_folder"])
    digests = DigestStore(backend.settings.cache / "digests")
    with ExitStack() as stack:
        found = []
        for entry in entries:
            path = folder / entry["name"]
            try:
                opened = OpenFile.of(path, str(entry["name"]))
            except OSError as error:
                find(backend, str(row["id"]))
                raise StorageError(f"{entry['name']} cannot be read: {error.strerror}.") from error
            stack.enter_context(opened.file)
            _check(opened, path, entry, digests)
            found.append(opened)
        stack.pop_all()
        return found


def _check(opened: OpenFile, path: Path, entry: Row, digests: DigestStore) -> None:
    """Raise StorageError unless the open file has the published bytes.

    The worker stored the digest by the file's signature; a file that was moved or touched since
    is hashed once.
    """
    actual = None
    if opened.signature.size == entry["bytes"]:
        try:
            actual, signature = local_sha256(path.resolve(), digests, str(entry["name"]))
        except SourceError as error:
            raise StorageError(error.message) from None
        if signature != opened.signature:
            actual = None
    if actual != entry["sha256"]:
        raise StorageError(
            f"{entry['name']} in the artifact store ({opened.signature.size:,} bytes) differs from "
            f"the merge's record ({entry['bytes']:,} bytes): something else changed the store."
        )
