"""What an evaluation reads: a manifest (or its folder) by URI, and audio by path."""

from __future__ import annotations

import os
from pathlib import Path

from app.contract.errors import SourceError, SourceNotAllowedError
from app.sources.blobs import BlobCache
from app.sources.checkpoint import SourceFile
from app.sources.fetch import link_snapshot
from app.sources.layout import check_quota
from app.sources.local import allowed_path, open_regular
from app.sources.manifest_kaldi import FILES as KALDI_FILES
from app.sources.policy import SourcePolicy
from app.sources.resolve import with_param
from app.sources.uris import FilePlace, WebPlace, parse_uri
from app.sources.web import WebClient


def resolve_dataset(uri: str, policy: SourcePolicy, *, param: str | None = None) -> Path:
    """Return the path of a manifest at a `file://` or `https://` URI, downloaded if need be.

    On this machine it may be the folder that holds the manifest. A downloaded file keeps its
    name, in a folder of its own in the cache.

    Raises:
        SourceError: with `param` as given: it is not there, not allowed, or too large.

    """
    try:
        place = parse_uri(uri, policy)
        if isinstance(place, FilePlace):
            real = allowed_path(place.path, policy.file_roots, uri)
            if os.path.isdir(real):  # noqa: PTH112 - false, where Path would raise
                return place.path.absolute()
            with open_regular(place.path, policy.file_roots, uri) as handle:
                size = os.fstat(handle.fileno()).st_size
            check_quota(uri, size, policy.max_source_bytes)
            # A linked file keeps its name and place: its suffix and its neighbours count.
            return place.path.absolute()
        if isinstance(place, WebPlace):
            if place.name in KALDI_FILES:
                raise SourceNotAllowedError(
                    f"{uri}: a Kaldi folder is read from file:// only, its files belong together"
                )
            return _download(uri, place, policy)
        raise SourceNotAllowedError(f"{uri}: a manifest is given by a file:// or https:// URI")
    except SourceError as error:
        raise with_param(error, param) from None


def manifest_roots(path: Path, policy: SourcePolicy) -> tuple[Path, ...] | None:
    """Return the folders that a manifest, resolved to `path`, must be read from."""
    # A download is the service's own file, wherever its cache is.
    return None if path.is_relative_to(_downloads(policy)) else policy.file_roots


def _downloads(policy: SourcePolicy) -> Path:
    return policy.cache_dir / "files"


def _download(uri: str, place: WebPlace, policy: SourcePolicy) -> Path:
    cache = BlobCache(policy)

    def in_time(count: int) -> None:
        policy.patience_seconds(uri)  # raises when the time is over

    with WebClient(policy, hub=False) as client:
        prefix = client.read_prefix(place.url, 1, uri)
        check_quota(uri, prefix.size, policy.max_source_bytes)
        file = SourceFile(place.name, prefix.size, url=place.url, etag=prefix.etag)
        blob = cache.get(file, client, uri, in_time)
    folder = link_snapshot(_downloads(policy) / blob.name, {place.name: blob})
    return folder / place.name
