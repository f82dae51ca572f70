"""Reads the dataset at a URI, and opens its audio."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from time import monotonic
from typing import Any

from app.contract.errors import (
    SourceError,
    SourceNotAllowedError,
    SourceNotFoundError,
    StorageError,
)
from app.sources.arrow_tables import TableFile, local_stream
from app.sources.audio_sources import AudioSource
from app.sources.blobs import BlobCache
from app.sources.checkpoint import SourceFile
from app.sources.dataset_queries import DatasetQuery, split_query
from app.sources.dataset_splits import choose
from app.sources.fetch import FetchStoppedError
from app.sources.layout import check_quota
from app.sources.local import open_regular
from app.sources.manifest_hugging_face import read_tables
from app.sources.manifest_kaldi import FILES as KALDI_FILES
from app.sources.manifest_place import Place
from app.sources.manifests import Manifest, audio_source, finish, read_manifest
from app.sources.policy import SourcePolicy
from app.sources.resolve import with_param
from app.sources.schemes import open_folder, scheme_of
from app.sources.schemes.folder import RemoteFolder, SourceFolder
from app.sources.schemes.hf import HubFolder

# While a client waits, texts on the hub are read for this long.
_MOST_SECONDS = 5.0
# One request for the texts of a row group.
_BUFFER_BYTES = 1 << 18
_MOST_README_BYTES = 1 << 20


def read_dataset(
    uri: str,
    policy: SourcePolicy,
    *,
    param: str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Return the manifest of the dataset at a URI, which may have a query.

    A manifest on the web is downloaded. So are tables of the hub, unless the policy limits the
    waiting: then their texts are read where they are, for some seconds.

    Raises:
        SourceError: with `param` as given: it is not there, not allowed, too large, or invalid.
        FetchStoppedError: `should_stop` returned true.

    """
    try:
        bare, query = _split(uri)
        with open_folder(bare, policy, uri) as source:
            if isinstance(source, HubFolder):
                return _from_hub(source, query, uri, should_stop)
            if isinstance(source, RemoteFolder):
                path, roots = _download(source, should_stop), None
            else:
                path, roots = _local_path(source), policy.file_roots
            return read_manifest(path, label=uri, roots=roots, query=query)
    except SourceError as error:
        raise with_param(error, param) from None


def open_audio(uri: str, audio: str, policy: SourcePolicy) -> FileIO:
    """Open the audio that a result of the dataset at a URI names; nothing is downloaded.

    Raises:
        SourceNotFoundError: the file or its manifest is gone, or a relative path has no folder.
        SourceNotAllowedError: it is outside the folders that may be read.

    """
    bare, _ = _split(uri)
    with open_folder(bare, policy, uri) as source:
        if isinstance(source, RemoteFolder):
            if not Path(audio).is_absolute():
                raise SourceNotFoundError(f"{audio}: a downloaded manifest has no files beside it")
            return open_regular(Path(audio), policy.file_roots, audio)
        manifest = _local_path(source)
    is_folder = os.path.isdir(manifest)  # noqa: PTH112 - never raises
    path = (manifest if is_folder else manifest.parent) / audio
    if "::" not in audio and (os.path.lexists(path) or not is_folder):
        return open_regular(path, policy.file_roots, audio)
    # A member of a container, or beside another manifest than the folder's.
    found = read_dataset(uri, policy)
    named = next((one for one in found.utterances if one.audio == audio), None)
    if named is None:
        raise SourceNotFoundError(f"{audio}: the dataset does not name it any more")
    return audio_source(found, named).open(policy.file_roots)


def _split(uri: str) -> tuple[str, DatasetQuery]:
    # The path of a file may have a question mark.
    if scheme_of(uri) is None and os.path.lexists(Path(uri).expanduser()):
        return uri, DatasetQuery()
    return split_query(uri)


def _local_path(source: SourceFolder) -> Path:
    file = source.as_file()
    check_quota(source.label, file.size, source.policy.max_source_bytes)
    assert file.path is not None
    return file.path


def _from_hub(
    source: HubFolder, query: DatasetQuery, label: str, should_stop: Callable[[], bool]
) -> Manifest:
    policy = source.policy
    names = source.files_of_dataset(".parquet")
    if not names:
        raise SourceNotFoundError(
            f"{label}: there is no parquet at this revision; the hub converts most datasets, at "
            f"hf://datasets/{source.repo}@refs/convert/parquet"
        )
    readme = source.find(["README.md"]).get("README.md")
    front = source.read_prefix(readme, _MOST_README_BYTES) if readme else b""
    chosen = source.find(choose(label, names, query, front))
    end = monotonic() + _MOST_SECONDS
    waits = policy.give_up_at is not None
    goes_on: Callable[[], bool] = (lambda: monotonic() < end) if waits else (lambda: True)
    place = Place(policy.cache_dir, "", label, None, query, goes_on=goes_on)
    progress = _progress(policy, source.label, should_stop)

    def tables() -> Iterator[TableFile]:
        size = 0
        for file in chosen.values():
            size += file.size
            check_quota(label, size, policy.max_source_bytes)
            if waits:
                yield TableFile(file.name, partial(_remote_stream, source, file))
                continue
            path = BlobCache(policy).get(file, source, progress)
            yield TableFile(file.name, partial(_cached_stream, path), path, downloaded=True)

    read_tables(place, tables())
    return replace(finish(place), remote=waits)


def _cached_stream(path: Path) -> Any:
    with AudioSource(path, downloaded=True).open() as handle:
        return local_stream(handle)


def _remote_stream(source: RemoteFolder, file: SourceFile) -> Any:
    import pyarrow as pa

    return pa.PythonFile(BufferedReader(_RemoteFile(source, file), _BUFFER_BYTES), mode="r")


@dataclass
class _RemoteFile(RawIOBase):
    """A file on a server, read by ranges."""

    source: RemoteFolder
    file: SourceFile
    at: int = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, and return the new position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.file.size}[whence]
        self.at = start + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer by one request; return the number of bytes read."""
        stop = min(self.at + len(buffer), self.file.size)
        content = self.source.read_range(self.file, self.at, stop) if stop > self.at else b""
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)


def _progress(
    policy: SourcePolicy, label: str, should_stop: Callable[[], bool]
) -> Callable[[int], None]:
    def in_time(count: int) -> None:
        policy.patience_seconds(label)  # raises when the time is over
        if should_stop():
            raise FetchStoppedError

    return in_time


def _download(source: RemoteFolder, should_stop: Callable[[], bool]) -> Path:
    policy = source.policy
    if source.name in KALDI_FILES:
        raise SourceNotAllowedError(
            f"{source.label}: a Kaldi folder must be on this machine: its files belong together"
        )
    file = source.as_file()
    check_quota(source.label, file.size, policy.max_source_bytes)
    blob = BlobCache(policy).get(file, source, _progress(policy, source.label, should_stop))
    # The file keeps its name, in a folder of its own.
    link = policy.cache_dir / "files" / blob.name / file.name
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError as error:
        raise StorageError(f"the cache at {link} cannot be written: {error.strerror}") from None
    return link
