"""The tar of a merge's checkpoint directory, made while it is read; the same bytes every time."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import anyio

from app.services.artifacts import Artifact, of_row
from app.services.backend import Backend
from app.services.merges import find

_CHUNK_BYTES = 1024**2


@dataclass(frozen=True)
class Segment:
    """A stretch of the tar: bytes, or the whole of a file."""

    length: int
    content: bytes | Path


@dataclass(frozen=True)
class Archive:
    """The tar as stretches; `sha256` identifies its bytes without being their digest."""

    name: str
    segments: tuple[Segment, ...]
    sha256: str

    @property
    def size(self) -> int:
        """The bytes of the tar."""
        return sum(segment.length for segment in self.segments)


def get(backend: Backend, merge_id: str) -> Archive:
    """Return the tar of a merge; NotFoundError before it has succeeded."""
    row = find(backend, merge_id)
    return build_archive(merge_id, of_row(backend, row).values())


def build_archive(folder: str, artifacts: Iterable[Artifact]) -> Archive:
    """Return a tar with the files, sorted, in a folder of that name: mtime 0, mode 0644."""
    segments: list[Segment] = []
    identity = hashlib.sha256()
    for artifact in sorted(artifacts, key=lambda artifact: artifact.name):
        size = artifact.status.st_size
        header = _header(f"{folder}/{artifact.name}", size)
        padding = -size % tarfile.BLOCKSIZE
        segments += [
            Segment(len(header), header),
            Segment(size, artifact.path),
            Segment(padding, bytes(padding)),
        ]
        identity.update(header + artifact.sha256.encode())
    end = 2 * tarfile.BLOCKSIZE
    end += -(sum(segment.length for segment in segments) + end) % tarfile.RECORDSIZE
    segments.append(Segment(end, bytes(end)))
    return Archive(f"{folder}.tar", tuple(segments), identity.hexdigest())


async def read(archive: Archive, start: int, stop: int) -> AsyncIterator[bytes]:
    """Yield the tar's bytes from `start` up to and without `stop`."""
    position = 0
    for segment in archive.segments:
        first, last = max(start - position, 0), min(stop - position, segment.length)
        position += segment.length
        if first >= last:
            continue
        if isinstance(segment.content, bytes):
            yield segment.content[first:last]
            continue
        async for chunk in _read_file(segment.content, first, last):
            yield chunk


async def _read_file(path: Path, start: int, stop: int) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(start)
        while start < stop:
            chunk = await file.read(min(_CHUNK_BYTES, stop - start))
            if not chunk:
                raise OSError(f"{path.name} became shorter while it was sent")
            start += len(chunk)
            yield chunk


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    # GNU's format: sizes above 8 GB without extra records.
    return info.tobuf(tarfile.GNU_FORMAT)
