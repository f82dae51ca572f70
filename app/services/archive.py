"""The tar of a merge's checkpoint directory, made while it is read; the same bytes every time."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping, Sequence

from app.services.artifacts import open_all, published
from app.services.backend import Backend
from app.services.downloads import Download, OpenFile, Part
from app.services.merges import find


def open_archive(backend: Backend, merge_id: str) -> Download:
    """Return the tar of a merge; NotFoundError before it has succeeded."""
    row = find(backend, merge_id)
    entries = published(row)
    digests = {str(entry["name"]): str(entry["sha256"]) for entry in entries}
    return build_archive(merge_id, open_all(backend, row, entries), digests)


def build_archive(folder: str, files: Sequence[OpenFile], digests: Mapping[str, str]) -> Download:
    """Return a tar with the files, sorted, in a folder of that name: mtime 0, mode 0644.

    Its `sha256`, made of the files' `digests`, identifies its bytes without being their digest.
    """
    stretches: list[bytes | OpenFile | Part] = []
    identity = hashlib.sha256()
    size = 0
    for file in sorted(files, key=lambda file: file.name):
        header = _header(f"{folder}/{file.name}", file.signature.size)
        padding = bytes(-file.signature.size % tarfile.BLOCKSIZE)
        stretches += [header, file, padding]
        size += len(header) + file.signature.size + len(padding)
        identity.update(header + digests[file.name].encode())
    end = 2 * tarfile.BLOCKSIZE
    stretches.append(bytes(end + -(size + end) % tarfile.RECORDSIZE))
    return Download(f"{folder}.tar", "application/x-tar", identity.hexdigest(), stretches)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    # GNU's format: sizes above 8 GB without extra records.
    return info.tobuf(tarfile.GNU_FORMAT)
