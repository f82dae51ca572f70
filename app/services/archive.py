"""The tar of a merge's checkpoint folder, built while it is sent; always the same bytes."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping, Sequence

from app.services.artifacts import open_all, published
from app.services.backend import Backend
from app.services.downloads import Download, OpenFile, Slice
from app.services.merges import find


def open_archive(backend: Backend, merge_id: str) -> Download:
    """Return the tar of a merge; NotFoundError unless it has succeeded."""
    row = find(backend, merge_id)
    entries = published(row)
    digests = {str(entry["name"]): str(entry["sha256"]) for entry in entries}
    return build_archive(merge_id, open_all(backend, row, entries), digests)


def build_archive(folder: str, files: Sequence[OpenFile], digests: Mapping[str, str]) -> Download:
    """Return a tar with the sorted files in a folder of this name, with mtime 0 and mode 0644.

    Its `sha256` is computed from the files' `digests`; it identifies the tar's bytes, but is not
    their digest.
    """
    pieces: list[bytes | OpenFile | Slice] = []
    identity = hashlib.sha256()
    size = 0
    for file in sorted(files, key=lambda file: file.name):
        header = _header(f"{folder}/{file.name}", file.signature.size)
        padding = bytes(-file.signature.size % tarfile.BLOCKSIZE)
        pieces += [header, file, padding]
        size += len(header) + file.signature.size + len(padding)
        identity.update(header + digests[file.name].encode())
    end = 2 * tarfile.BLOCKSIZE
    pieces.append(bytes(end + -(size + end) % tarfile.RECORDSIZE))
    return Download(f"{folder}.tar", "application/x-tar", identity.hexdigest(), pieces)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    # GNU's format stores sizes above 8 GB without extra records.
    return info.tobuf(tarfile.GNU_FORMAT)
