"""The cache of downloads: by sha256, resumable, and safe for any number of processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from app.contract.errors import SourceChangedError, StorageError
from app.sources.checkpoint import SourceFile
from app.sources.digests import DigestStore, local_sha256, remember
from app.sources.policy import SourcePolicy
from app.sources.schemes.folder import PassingFaultError, RemoteFolder

_LOCK_POLL_SECONDS = 0.1
# An attempt that downloads this much does not count as failed: a slow line may break often.
_WORTHWHILE_BYTES = 8 << 20

Progress = Callable[[int], None]


class BlobCache:
    """Verified downloads under `cache_dir`, each stored once under its digest."""

    def __init__(self, policy: SourcePolicy) -> None:
        self._policy = policy
        self._folder = policy.cache_dir
        self.digests = DigestStore(policy.cache_dir / "digests")

    def get(self, file: SourceFile, source: RemoteFolder, progress: Progress) -> Path:
        """Return the path of a file's bytes, downloaded unless they are here already.

        `progress` gets the number of bytes of each piece, and may raise to stop; the next call
        goes on where the download stopped.

        Raises:
            SourceError: the server fails, refuses, or serves other bytes than were listed.
            StorageError: the disk is full or cannot be written.

        """
        key = _key(file)
        with _storage_errors(self._folder), self._locked(key, progress):
            present = self._present(file, key, source.label_of(file.name))
            if present is None:
                present = self._download(file, key, source, progress)
            else:
                progress(file.size)
            return present

    def path_of(self, sha256: str) -> Path:
        """Return where the bytes of a digest are kept."""
        return self._folder / "blobs" / sha256[:2] / sha256

    def _present(self, file: SourceFile, key: str, label: str) -> Path | None:
        # Without a version the server may by now hold other bytes of the same size.
        known = file.sha256 or (self.digests.get(key) if file.is_pinned else None)
        return None if known is None else self._intact(known, label)

    def _intact(self, sha256: str, label: str) -> Path | None:
        """Return the path of the bytes with this digest if they are here; remove damaged ones."""
        path = self.path_of(sha256)
        if not path.is_file():
            return None
        actual, _ = local_sha256(path, self.digests, label)
        if actual == sha256:
            return path
        path.unlink(missing_ok=True)
        return None

    def _download(
        self, file: SourceFile, key: str, source: RemoteFolder, progress: Progress
    ) -> Path:
        label = source.label_of(file.name)
        part = self._folder / "parts" / f"{_digest(key)}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        if _size(part) > file.size or not file.is_pinned:
            part.unlink(missing_ok=True)
        progress(_size(part))
        self._check_space(file.size - _size(part), label)
        try:
            _transfer(part, file, source, progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                part.unlink(missing_ok=True)
            raise
        sha256, _ = local_sha256(part, self.digests, label)
        if file.sha256 is not None and sha256 != file.sha256:
            part.unlink()
            raise SourceChangedError(
                f"{label}: the bytes served have sha256 {sha256}, listed was {file.sha256}"
            )
        path = self._keep(part, sha256, label, progress)
        self.digests.put(key, sha256)
        return path

    def _keep(self, part: Path, sha256: str, label: str, progress: Progress) -> Path:
        """Move a download to the place of its digest, and return that."""
        with self._locked(sha256, progress):
            # Another source had the same file: it may be in use, and must stay that very file.
            if (path := self._intact(sha256, label)) is not None:
                part.unlink()
                return path
            path = self.path_of(sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Read-only: links lead here, and nobody must write through a link.
            part.chmod(0o444)
            part.replace(path)
            remember(path, sha256, self.digests)
        return path

    def _check_space(self, needed: int, label: str) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise StorageError(
                f"{label}: {needed:,} bytes are to be downloaded, and the cache at {self._folder} "
                f"has {free:,} free"
            )

    @contextmanager
    def _locked(self, key: str, progress: Progress) -> Iterator[None]:
        """Let one process at a time handle a file; the lock ends with its holder."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / "locks" / _digest(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            while not _try_lock(stream):
                progress(0)
                time.sleep(_LOCK_POLL_SECONDS)
            yield


def _transfer(part: Path, file: SourceFile, source: RemoteFolder, progress: Progress) -> None:
    """Download the rest of the file, going on after each passing fault."""
    delays = source.policy.retry_delays_seconds
    failures = 0
    while _size(part) != file.size or file.size == 0:
        before = _size(part)
        try:
            _attempt(part, file, source, progress)
            break
        except PassingFaultError as fault:
            failures = 1 if _size(part) - before >= _WORTHWHILE_BYTES else failures + 1
            if failures > len(delays):
                raise
            _pause(max(delays[failures - 1], fault.retry_after_seconds), progress)


def _attempt(part: Path, file: SourceFile, source: RemoteFolder, progress: Progress) -> None:
    offset = _size(part)
    label = source.label_of(file.name)
    with part.open("ab") as stream, closing(source.read(file, offset, file.size)) as chunks:
        for chunk in chunks:
            offset += len(chunk)
            if offset > file.size:
                raise SourceChangedError(f"{label}: the server sends more bytes than it stated")
            stream.write(chunk)
            progress(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())
    if offset < file.size:
        raise PassingFaultError(f"{label}: the server ended the file {file.size - offset:,} early")


def _pause(seconds: float, progress: Progress) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        progress(0)
        time.sleep(min(left, _LOCK_POLL_SECONDS))


def _try_lock(stream: BinaryIO) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"the cache at {folder} cannot be written: {error.strerror}") from None


def _key(file: SourceFile) -> str:
    return f"url:{file.url}:{file.version}:{file.sha256}:{file.size}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
