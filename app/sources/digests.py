"""Takes sha256 digests of files, and keeps those of files that have not changed since."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path

from app.contract.errors import SourceChangedError, SourceNotFoundError, StorageError
from app.sources.checkpoint import Signature
from app.sources.local import open_regular, open_unchanged

_CHUNK_BYTES = 1 << 20
# Two changes within a clock tick leave the same times: a younger file's digest is not kept.
_YOUNG_SECONDS = 2.0


class DigestStore:
    """Digests by key, one small file each: atomic, and safe for any number of processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> str | None:
        """Return the digest kept under the key, or None."""
        try:
            entry = json.loads(self._path(key).read_text("utf-8"))
            return str(entry["sha256"]) if entry["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, sha256: str) -> None:
        """Keep a digest under the key."""
        write_atomically(self._path(key), json.dumps({"key": key, "sha256": sha256}).encode())

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / name


def local_sha256(
    path: Path,
    store: DigestStore,
    label: str,
    *,
    signature: Signature | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[str, Signature]:
    """Return a file's sha256 and signature; the digest is the stored one if nothing changed.

    `signature` is what the file had when it was looked at, if it was. `progress` gets the number
    of bytes of each piece, and may raise to stop.

    Raises:
        SourceChangedError: the file changed while it was read, or since it was looked at.
        SourceNotFoundError: it cannot be read.

    """
    looked_at = time.time()
    if signature is None:
        handle = open_regular(path, None, label)
    else:
        handle = open_unchanged(path, signature, label)
    with handle:
        before = Signature.of(os.fstat(handle.fileno()))
        key = _file_key(path, before)
        known = store.get(key)
        if known is not None:
            progress(before.size)
            return known, before
        try:
            sha256 = _read(handle, progress)
        except OSError as error:
            raise SourceNotFoundError(f"{label}: cannot be read ({error.strerror})") from None
        after = Signature.of(os.fstat(handle.fileno()))
    if before != after:
        raise SourceChangedError(f"{label}: the file changed while it was read; try again")
    youngest = max(before.mtime_ns, before.ctime_ns) / 1e9
    if looked_at - youngest > _YOUNG_SECONDS:
        store.put(key, sha256)
    return sha256, before


def remember(path: Path, sha256: str, store: DigestStore) -> None:
    """Store the digest of a file that this process has just written, and only we write."""
    store.put(_file_key(path, Signature.of(path.stat())), sha256)


def checkpoint_sha256(files: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 of the sorted list of (path, sha256), written as compact JSON."""
    listed = json.dumps(sorted(files), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(listed.encode("utf-8")).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that others see it whole or not at all.

    Raises:
        StorageError: the disk is full or cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"the cache at {path.parent} cannot be written: {error}") from None


def _file_key(path: Path, signature: Signature) -> str:
    return f"file:{path}:{signature}"


def _read(handle: FileIO, progress: Callable[[int], None]) -> str:
    # hashlib.file_digest cannot be stopped, and a checkpoint takes seconds.
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while count := handle.readinto(buffer):
        digest.update(buffer[:count])
        progress(count)
    return digest.hexdigest()
