"""Checkpoint folders on a web server, and models of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from app.contract.errors import (
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from app.sources.checkpoint import SourceFile
from app.sources.policy import SourcePolicy
from app.sources.uris import HubPlace
from app.sources.web import PassingFaultError, WebClient, retrying

_COMMIT = re.compile(r"[0-9a-f]{40}")
# One request tells whether a file is there, its size and what most of them begin with.
_PROBE_BYTES = 64 * 1024
_PROBES_AT_ONCE = 8


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
        info = retrying(policy, lambda: _model_info(place, policy, label))
        if not _COMMIT.fullmatch(info.sha or ""):
            raise SourceUnreachableError(f"{label}: the hub did not say which commit this is")
        self.resolved = f"hf://{place.repo}@{info.sha}"
        self._place, self._commit, self._endpoint = place, info.sha, policy.hf_endpoint
        self._siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        """Return the files of these names that the commit has."""
        return {n: self._file(self._siblings[n]) for n in names if n in self._siblings}

    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        """Return the first `length` bytes, or fewer where the file ends."""
        assert file.url is not None
        return self._client.read_prefix(file.url, length, f"{self.label}: {file.name}").data

    def _file(self, sibling: Any) -> SourceFile:
        from huggingface_hub import hf_hub_url

        name = sibling.rfilename
        if sibling.size is None:
            raise SourceUnreachableError(f"{self.label}: the hub does not state {name}'s size")
        return SourceFile(
            name=name,
            size=sibling.size,
            url=hf_hub_url(self._place.repo, name, revision=self._commit, endpoint=self._endpoint),
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            immutable=True,
        )


def _model_info(place: HubPlace, policy: SourcePolicy, label: str) -> Any:
    # Imported late: most requests name no model of the hub.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # False, not None: a login saved on the machine is not the service's to use.
    api = HfApi(endpoint=policy.hf_endpoint, token=policy.hf_token or False)
    try:
        return api.model_info(
            place.repo,
            revision=place.revision,
            files_metadata=True,
            timeout=policy.timeout_seconds,
        )
    except HfHubHTTPError as error:
        raise _hub_error(error.response.status_code, place, policy, label) from None
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        raise PassingFaultError(
            f"{label}: the hub at {policy.hf_endpoint} cannot be reached ({type(error).__name__})"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise SourceUnreachableError(
            f"{label}: {policy.hf_endpoint} does not answer as the hub does"
        ) from None


def _hub_error(status: int, place: HubPlace, policy: SourcePolicy, label: str) -> Exception:
    if status == 404:
        where = f"{place.repo} at revision {place.revision}" if place.revision else place.repo
        return SourceNotFoundError(f"{label}: the hub has no model {where}")
    if status in (401, 403):
        token = (
            "the token in AFLUENTE_HF_TOKEN may not read it"
            if policy.hf_token
            else ("if it is private or gated, set AFLUENTE_HF_TOKEN to a token that may read it")
        )
        return SourceNotAllowedError(
            f"{label}: the hub refuses access to {place.repo} ({status}): check the name; {token}"
        )
    message = f"{label}: the hub answered {status}"
    return (
        PassingFaultError(message)
        if status >= 500 or status == 429
        else (SourceUnreachableError(message))
    )
