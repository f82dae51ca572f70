"""Checkpoint folders on a web server, and models of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from app.contract.errors import (
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from app.sources.checkpoint import SourceFile
from app.sources.policy import SourcePolicy
from app.sources.uris import HubPlace
from app.sources.web import WebClient

# One request tells whether a file is there, its size and what most of them begin with.
_PROBE_BYTES = 64 * 1024
_PROBES_AT_ONCE = 8
# A repository with thousands of files has some hundred kilobytes.
_MOST_INFO_BYTES = 8 * 2**20


class WebFolder:
    """A folder below an https address; it has no listing, so each name is tried."""

    def __init__(self, url: str, client: WebClient, label: str) -> None:
        self.label = label
        self._url = url
        self._client = client
        self._prefixes: dict[str, bytes] = {}

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that the server has and lets be read."""
        wanted = list(names)
        with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
            files = list(pool.map(self._probe, wanted))
        return {file.name: file for file in files if file is not None}

    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        """Return the first `length` bytes, or fewer where the file ends."""
        known = self._prefixes.get(file.name, b"")
        if len(known) >= min(length, file.size):
            return known[:length]
        assert file.url is not None
        return self._client.read_prefix(file.url, length, f"{self.label}: {file.name}").data

    def _probe(self, name: str) -> SourceFile | None:
        url = f"{self._url}/{name}"
        try:
            prefix = self._client.read_prefix(url, _PROBE_BYTES, f"{self.label}: {name}")
        except SourceNotFoundError:
            return None
        except SourceNotAllowedError:
            # Stores without a listing permission say 403 for what is not there; only the one
            # file that every checkpoint has tells a refusal from an absence.
            if name == "config.json":
                raise
            return None
        self._prefixes[name] = prefix.data
        return SourceFile(name=name, size=prefix.size, url=url, etag=prefix.etag)


class HubFolder:
    """A model of the hub at one commit."""

    def __init__(
        self, place: HubPlace, policy: SourcePolicy, client: WebClient, label: str
    ) -> None:
        self.label = label
        self._client = client
        info = _model_info(place, policy, client, label)
        self.resolved = f"hf://{place.repo}@{info.sha}"
        self._root = f"{policy.hf_endpoint}/{place.repo}/resolve/{info.sha}"
        self._siblings = {sibling.rfilename: sibling for sibling in info.siblings}

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that the commit has."""
        return {n: self._file(self._siblings[n]) for n in names if n in self._siblings}

    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        """Return the first `length` bytes, or fewer where the file ends."""
        assert file.url is not None
        return self._client.read_prefix(file.url, length, f"{self.label}: {file.name}").data

    def _file(self, sibling: _Sibling) -> SourceFile:
        if sibling.size is None:
            raise SourceUnreachableError(
                f"{self.label}: the hub does not state {sibling.rfilename}'s size"
            )
        return SourceFile(
            name=sibling.rfilename,
            size=sibling.size,
            url=f"{self._root}/{quote(sibling.rfilename)}",
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            immutable=True,
        )


class _Lfs(BaseModel):
    # It becomes the name of a file in the cache.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Sibling(BaseModel):
    rfilename: str
    size: int | None = Field(None, ge=0)
    lfs: _Lfs | None = None


class _ModelInfo(BaseModel):
    """What the hub says of a model at a revision, as far as it matters here."""

    sha: str = Field(pattern=r"^[0-9a-f]{40}$")
    siblings: tuple[_Sibling, ...] = ()


def _model_info(place: HubPlace, policy: SourcePolicy, client: WebClient, label: str) -> _ModelInfo:
    """Ask the hub, over the client that checks every hop of a redirect."""
    # The hub's own library follows redirects to any address.
    url = f"{policy.hf_endpoint}/api/models/{place.repo}"
    if place.revision:
        url += f"/revision/{quote(place.revision, safe='')}"
    try:
        content = client.read_small(f"{url}?blobs=true", _MOST_INFO_BYTES, label)
        return _ModelInfo.model_validate_json(content)
    except SourceNotFoundError:
        where = f"{place.repo} at revision {place.revision}" if place.revision else place.repo
        raise SourceNotFoundError(f"{label}: the hub has no model {where}") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise SourceUnreachableError(
            f"{label}: {policy.hf_endpoint} does not answer as the hub does"
            f" ({where or 'no JSON'} is not what it should be)"
        ) from None
