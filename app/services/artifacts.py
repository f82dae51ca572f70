"""The published files of a merge: by name, and only those that its record lists."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from app.contract.errors import NotFoundError, StorageError
from app.services.backend import Backend
from app.services.merges import find
from app.services.presentation import Row, artifact_resources, media_type
from app.services.resources import ArtifactPage


@dataclass(frozen=True)
class Artifact:
    """A published file and what is known of it; `status` is its stat result."""

    name: str
    path: Path
    sha256: str
    media_type: str
    status: os.stat_result


def list_all(backend: Backend, merge_id: str) -> ArtifactPage:
    """Return the files of a merge; none before it has succeeded."""
    return ArtifactPage(data=artifact_resources(find(backend, merge_id)))


def get(backend: Backend, merge_id: str, name: str) -> Artifact:
    """Return one file of a merge; NotFoundError unless its record lists the name."""
    files = of_row(backend, find(backend, merge_id))
    if name not in files:
        listed = ", ".join(files)
        raise NotFoundError(f'The merge {merge_id} has no artifact "{name}". It has: {listed}.')
    return files[name]


def of_row(backend: Backend, row: Row) -> dict[str, Artifact]:
    """Return all files of a merge by name, sorted; NotFoundError before it has succeeded."""
    if row["status"] != "succeeded" or row["artifact_folder"] is None:
        raise NotFoundError(
            f"The merge {row['id']} is {row['status']}; there are artifacts once it has succeeded."
        )
    folder = backend.store.published_folder(row["artifact_folder"])
    entries = sorted(row["artifacts"], key=lambda entry: str(entry["name"]))
    return {entry["name"]: _artifact(folder, entry) for entry in entries}


def _artifact(folder: Path, entry: Row) -> Artifact:
    path = folder / entry["name"]
    try:
        status = path.stat()
    except OSError as error:
        raise StorageError(f"{entry['name']} cannot be read: {error.strerror}.") from error
    if status.st_size != entry["bytes"]:
        raise StorageError(
            f"{entry['name']} has {status.st_size:,} bytes in the artifact store and "
            f"{entry['bytes']:,} in the merge's record: the store was changed by other hands."
        )
    return Artifact(entry["name"], path, entry["sha256"], media_type(entry["name"]), status)
