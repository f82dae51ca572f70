"""`https://`: folders and files on web servers."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from app.contract.errors import SourceNotAllowedError, SourceNotFoundError
from app.sources.checkpoint import SourceFile
from app.sources.policy import SourcePolicy
from app.sources.schemes.folder import RemoteFolder
from app.sources.uris import split_uri

if TYPE_CHECKING:
    from app.sources.web import WebClient

# One request tells whether a file is there, its size and what most of them begin with.
_PROBE_BYTES = 64 * 1024
_PROBES_AT_ONCE = 8


class WebFolder(RemoteFolder):
    """A folder whose files are read over HTTP."""

    is_hub: ClassVar[bool]
    _client: WebClient | None = None

    @property
    def client(self) -> WebClient:
        """The connections, made when first needed."""
        if self._client is None:
            # Importing the HTTP library takes a tenth of a second.
            from app.sources.web import WebClient

            self._client = WebClient(self.policy, hub=self.is_hub)
        return self._client

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def read(self, file: SourceFile, start: int, stop: int) -> Generator[bytes, None, None]:
        """Yield a file's bytes from `start` to `stop`, or to its end."""
        etag = None if self.is_hub else file.version
        return self.client.read(file, start, stop, self.label_of(file.name), etag)


class HttpsFolder(WebFolder):
    """A folder on a web server. There is no listing, so each name is tried."""

    scheme = "https"
    form = "https://host/folder"
    is_hub = False

    def __init__(self, uri: str, policy: SourcePolicy) -> None:
        super().__init__(uri, policy)
        parts = split_uri(uri, names_server=True)
        if parts.scheme != "https" and not policy.allow_private_addresses:
            raise SourceNotAllowedError(f"{uri}: {parts.scheme} is not allowed, use https")
        self.name = parts.name or parts.host
        self._url = parts.url
        self._prefixes: dict[str, bytes] = {}

    @property
    def resolved(self) -> str:
        """The URI in its normal form."""
        return self._url

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that the server has and lets be read."""
        _ = self.client  # made before the threads
        with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
            files = list(pool.map(self._probe, names))
        return {file.name: file for file in files if file is not None}

    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        """Return the first `length` bytes, or fewer where the file ends."""
        known = self._prefixes.get(file.name, b"")
        if len(known) >= min(length, file.size):
            return known[:length]
        return super().read_prefix(file, length)

    def as_file(self) -> SourceFile:
        """Return the file that the URI itself names."""
        return self._look_at(self._url, self.name)

    def _probe(self, name: str) -> SourceFile | None:
        try:
            return self._look_at(f"{self._url}/{name}", name)
        except SourceNotFoundError:
            return None
        except SourceNotAllowedError:
            # Stores without a listing permission say 403 for what is not there; only the one
            # file that every checkpoint has tells a refusal from an absence.
            if name == "config.json":
                raise
            return None

    def _look_at(self, url: str, name: str) -> SourceFile:
        label = self.label_of(name)
        file, self._prefixes[name] = self.client.look_at(url, name, _PROBE_BYTES, label)
        return file
