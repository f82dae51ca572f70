"""Resolves the URI of a dataset's manifest to a path on this machine, and opens its audio."""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

from app.contract.errors import (
    SourceError,
    SourceNotAllowedError,
    SourceNotFoundError,
    StorageError,
)
from app.sources.blobs import BlobCache
from app.sources.layout import check_quota
from app.sources.local import open_regular
from app.sources.manifest_kaldi import FILES as KALDI_FILES
from app.sources.policy import SourcePolicy
from app.sources.resolve import with_param
from app.sources.schemes import open_folder
from app.sources.schemes.folder import RemoteFolder


def resolve_dataset(uri: str, policy: SourcePolicy, *, param: str | None = None) -> Path:
    """Return the path of the manifest at a URI, downloaded if need be.

    On this machine it may be the folder that holds the manifest. A downloaded file keeps its
    name, in a folder of its own in the cache.

    Raises:
        SourceError: with `param` as given: it is not there, not allowed, or too large.

    """
    try:
        with open_folder(uri, policy) as source:
            if isinstance(source, RemoteFolder):
                return _download(source)
            file = source.as_file()
        check_quota(uri, file.size, policy.max_source_bytes)
        assert file.path is not None
        return file.path
    except SourceError as error:
        raise with_param(error, param) from None


def manifest_roots(path: Path, policy: SourcePolicy) -> tuple[Path, ...] | None:
    """Return the folders that a manifest, resolved to `path`, must be read from."""
    # A download is the service's own file, wherever its cache is.
    return None if path.is_relative_to(_downloads(policy)) else policy.file_roots


def open_audio(uri: str, audio: str, policy: SourcePolicy) -> FileIO:
    """Open an audio file as the manifest at a URI names it; nothing is downloaded.

    Raises:
        SourceNotFoundError: the file or its manifest is gone, or a relative path has no folder.
        SourceNotAllowedError: it is outside the folders that may be read.

    """
    with open_folder(uri, policy) as source:
        if not isinstance(source, RemoteFolder):
            manifest = source.as_file().path
            assert manifest is not None
            is_folder = os.path.isdir(manifest)  # noqa: PTH112 - never raises
            audio_path = (manifest if is_folder else manifest.parent) / audio
        elif Path(audio).is_absolute():
            audio_path = Path(audio)
        else:
            raise SourceNotFoundError(f"{audio}: a downloaded manifest has no files beside it")
    return open_regular(audio_path, policy.file_roots, audio)


def _downloads(policy: SourcePolicy) -> Path:
    return policy.cache_dir / "files"


def _download(source: RemoteFolder) -> Path:
    policy = source.policy

    def in_time(count: int) -> None:
        policy.patience_seconds(source.label)  # raises when the time is over

    if source.name in KALDI_FILES:
        raise SourceNotAllowedError(
            f"{source.label}: a Kaldi folder must be on this machine: its files belong together"
        )
    file = source.as_file()
    check_quota(source.label, file.size, policy.max_source_bytes)
    blob = BlobCache(policy).get(file, source, in_time)
    link = _downloads(policy) / blob.name / file.name
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError as error:
        raise StorageError(f"the cache at {link} cannot be written: {error.strerror}") from None
    return link
