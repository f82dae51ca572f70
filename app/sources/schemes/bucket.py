"""`s3://`, `gs://` and `az://`: folders and files in object stores.

Credentials, region and endpoint come from the operator's environment, by each store's own names
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME, ...) or
its machine's identity. They are the operator's, so callers reach the listed buckets only.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from app.contract.errors import (
    SourceChangedError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from app.sources.checkpoint import SourceFile
from app.sources.policy import SourcePolicy
from app.sources.schemes.folder import PassingFaultError, RemoteFolder
from app.sources.uris import split_uri

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", re.ASCII)
_CHUNK_BYTES = 1 << 20


class BucketFolder(RemoteFolder):
    """A folder of a bucket: the objects whose keys begin with its path."""

    store_class: ClassVar[str]
    _opened: ObjectStore | None = None

    def __init__(self, uri: str, policy: SourcePolicy) -> None:
        super().__init__(uri, policy)
        place = place_in_bucket(uri)
        if not _BUCKET.fullmatch(place[1]):
            raise SourceNotAllowedError(f"{uri}: write {self.form}")
        _, self._bucket, *self._segments = place
        self.name = place[-1]
        self._root = f"{self.scheme}://{self._bucket}/"
        policy.check_bucket(place, uri)

    @property
    def resolved(self) -> str:
        """The URI in its normal form."""
        return (self._root + "/".join(map(quote, self._segments))).rstrip("/")

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the objects of these names below the folder; one listing for each subfolder."""
        import obstore

        wanted = {self._key(name): name for name in names}
        found = {}
        for parent in sorted({key.rpartition("/")[0] for key in wanted}):
            with self._faults(self.label):
                listed = obstore.list_with_delimiter(self._store, parent or None)["objects"]
            for meta in listed:
                if name := wanted.get(meta["path"]):
                    found[name] = self._file(name, meta)
        return found

    def read(self, file: SourceFile, start: int, stop: int) -> Generator[bytes, None, None]:
        """Yield an object's bytes from `start` to `stop`, or to its end."""
        stop = min(stop, file.size)
        with self._faults(self.label_of(file.name)):
            at = start
            for chunk in self._stream(file, start, stop) if start < stop else ():
                yield bytes(chunk[: stop - at])
                at += len(chunk)
                if at >= stop:
                    break

    def _stream(self, file: SourceFile, start: int, stop: int) -> Iterator[memoryview]:
        """Yield an object's bytes from `start` to `stop` or beyond, in chunks."""
        import obstore
        from obstore.exceptions import GenericError

        key = str(file.url).removeprefix(self._root)
        options: Any = {"range": (start, stop)} if stop - start < file.size else {}
        skipped = 0
        try:
            answer = obstore.get(self._store, key, options=options)
        except GenericError as error:
            # Some servers send a range as 200 instead of 206 (rclone's do), which obstore refuses.
            if "non-partial" not in str(error):
                raise
            answer, skipped = obstore.get(self._store, key), start
        if _version(answer.meta) != file.version:
            raise SourceChangedError(f"{self.label_of(file.name)}: it changed; submit again")
        for chunk in answer.stream(_CHUNK_BYTES):
            yield memoryview(chunk)[skipped:]
            skipped = max(0, skipped - len(chunk))

    def as_file(self) -> SourceFile:
        """Return the object that the URI itself names."""
        import obstore

        with self._faults(self.label):
            return self._file(self.name, obstore.head(self._store, "/".join(self._segments)))

    def _key(self, name: str) -> str:
        return "/".join((*self._segments, name))

    def _file(self, name: str, meta: ObjectMeta) -> SourceFile:
        url = f"{self._root}{meta['path']}"
        return SourceFile(name, meta["size"], url=url, version=_version(meta))

    @property
    def _store(self) -> ObjectStore:
        """The connections, made when first needed."""
        if self._opened is None:
            from obstore import store

            patience = timedelta(seconds=self.policy.patience_seconds(self.label))
            options = {"connect_timeout": patience, "read_timeout": patience, "allow_http": True}
            with self._faults(self.label):
                self._opened = getattr(store, self.store_class)(
                    self._bucket,
                    # The endpoint is https unless the operator has set another.
                    client_options=options,
                    # Attempts are repeated by RemoteFolder and the downloads, as for all schemes.
                    retry_config={"max_retries": 0},
                )
        return self._opened

    @contextmanager
    def _faults(self, label: str) -> Iterator[None]:
        """Turn obstore's errors into ours, without their texts: these may hold signed addresses."""
        from obstore import exceptions

        where = f"{label}: the bucket {self._bucket}"
        try:
            yield
        except (exceptions.BaseError, FileNotFoundError) as error:
            # Listings fail with GenericError whatever the status.
            status = re.search(r"status code: (\d+)", str(error))
            missing = (exceptions.NotFoundError, FileNotFoundError)
            denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
            if isinstance(error, missing) or (status and status[1] == "404"):
                raise SourceNotFoundError(
                    f"{where} has no such object, or does not exist"
                ) from None
            if isinstance(error, denied) or (status and status[1] in {"401", "403"}):
                raise SourceNotAllowedError(
                    f"{where} refuses access; the operator's credentials must allow reading and "
                    "listing"
                ) from None
            raise PassingFaultError(
                f"{where} cannot be read ({type(error).__name__}); check the endpoint, the region "
                "and the credentials of the service's environment"
            ) from None


def _version(meta: ObjectMeta) -> str | None:
    """Return an object's ETag; some servers quote it in listings, some do not."""
    return meta["e_tag"] and meta["e_tag"].strip('"')


def place_in_bucket(uri: str) -> tuple[str, ...]:
    """Return (scheme, bucket, *folders) of a URI."""
    parts = split_uri(uri, names_server=False)
    if parts.port is not None:
        raise SourceNotAllowedError(
            f"{uri}: a bucket has no port; the operator sets the store's endpoint"
        )
    return (parts.scheme, parts.host, *parts.segments)


class S3Folder(BucketFolder):
    """A folder of Amazon S3, or of a server that speaks its protocol."""

    scheme = "s3"
    form = "s3://bucket/folder"
    store_class = "S3Store"


class GoogleFolder(BucketFolder):
    """A folder of Google Cloud Storage."""

    scheme = "gs"
    form = "gs://bucket/folder"
    store_class = "GCSStore"


class AzureFolder(BucketFolder):
    """A folder of Azure Blob Storage; the account is the environment's."""

    scheme = "az"
    form = "az://container/folder"
    store_class = "AzureStore"
