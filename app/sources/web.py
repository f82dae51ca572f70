"""Reads from web servers: redirects are checked, faults retried, tokens sent to the hub only."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager

import httpx2

from app.contract.errors import (
    SourceChangedError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from app.sources.addresses import PublicBackend, PublicTransport
from app.sources.checkpoint import SourceFile
from app.sources.policy import SourcePolicy
from app.sources.schemes.folder import PassingFaultError, first_bytes, retrying

_MAX_REDIRECTS = 5
_PASSING_FAULTS = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_RETRY_AFTER_SECONDS = 10.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")


class WebClient:
    """A client for one kind of source: the hub (redirects to any public host), or https."""

    def __init__(self, policy: SourcePolicy, *, hub: bool) -> None:
        self._policy = policy
        self._hub_origin = _origin(httpx2.URL(policy.hf_endpoint)) if hub else None
        trusted = {self._hub_origin[1:]} if self._hub_origin else set()
        self._client = httpx2.Client(
            transport=PublicTransport(PublicBackend(trusted, policy.allow_private_addresses)),
            timeout=policy.timeout_seconds,
            headers={"User-Agent": "afluente", "Accept-Encoding": "identity"},
            follow_redirects=False,
        )

    @contextmanager
    def open(
        self, url: str, label: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx2.Response]:
        """Yield the open response (200, 206 or 416) to a GET, redirects followed.

        Raises:
            SourceNotFoundError, SourceNotAllowedError, SourceUnreachableError: by its status, or
                because reading it failed.

        """
        try:
            with self._follow(httpx2.URL(url), label, headers or {}) as response:
                self._check_status(response, label)
                yield response
        except httpx2.TransportError as error:
            # The class only: a message may hold a signed address.
            raise PassingFaultError(
                f"{label}: {httpx2.URL(url).host} cannot be reached ({type(error).__name__})"
            ) from None
        except httpx2.InvalidURL:
            raise SourceUnreachableError(f"{label}: the server's redirect is no URL") from None

    @contextmanager
    def _follow(
        self, url: httpx2.URL, label: str, headers: Mapping[str, str]
    ) -> Iterator[httpx2.Response]:
        for _ in range(_MAX_REDIRECTS + 1):
            self._check_hop(url, label)
            request = self._client.build_request(
                "GET",
                url,
                headers=self._headers(url, headers),
                timeout=self._policy.patience_seconds(label),
            )
            response = self._client.send(request, stream=True)
            try:
                if not response.has_redirect_location:
                    yield response
                    return
                url = url.join(response.headers["location"])
            finally:
                response.close()
        raise SourceUnreachableError(f"{label}: more than {_MAX_REDIRECTS} redirects")

    def _check_hop(self, url: httpx2.URL, label: str) -> None:
        origin = _origin(url)
        if origin == self._hub_origin:
            return
        if url.scheme != "https" and not (
            url.scheme == "http" and self._policy.allow_private_addresses
        ):
            raise SourceNotAllowedError(f"{label}: {url.scheme}://{url.host} is not https")
        if url.userinfo:
            raise SourceNotAllowedError(f"{label}: {url.host}: an address with a password")
        if self._hub_origin is None:
            self._policy.check_host(url.host, origin[2], 443, label)

    def _headers(self, url: httpx2.URL, headers: Mapping[str, str]) -> dict[str, str]:
        token = self._policy.hf_token
        if token and self._hub_origin is not None and _origin(url) == self._hub_origin:
            return {**headers, "Authorization": f"Bearer {token}"}
        return dict(headers)

    def _check_status(self, response: httpx2.Response, label: str) -> None:
        status, host = response.status_code, response.url.host
        if status in (200, 206, 416):
            if response.headers.get("content-encoding", "identity") != "identity":
                raise SourceUnreachableError(f"{label}: {host} sends the file compressed")
            return
        if status in (404, 410):
            raise SourceNotFoundError(f"{label}: {host} has no such file ({status})")
        if status in (401, 403):
            raise SourceNotAllowedError(f"{label}: {host} refuses access ({status}).{self._hint()}")
        message = f"{label}: {host} answered {status}"
        if status not in _PASSING_FAULTS:
            raise SourceUnreachableError(message)
        fault = PassingFaultError(message)
        fault.retry_after_seconds = _seconds(response.headers.get("retry-after", ""))
        raise fault

    def _hint(self) -> str:
        if self._hub_origin is None:
            return ""
        has = (
            "the token in AFLUENTE_HF_TOKEN may not read it"
            if self._policy.hf_token
            else ("set AFLUENTE_HF_TOKEN to a token that may read it")
        )
        return f" The repository is private or gated, or its name is wrong: {has}."

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def look_at(self, url: str, name: str, length: int, label: str) -> tuple[SourceFile, bytes]:
        """Return what the server says of a file, and its first `length` bytes."""

        def read() -> tuple[SourceFile, bytes]:
            with self.open(url, label, {"Range": f"bytes=0-{length - 1}"}) as response:
                size, etag = _total_size(response, label), _strong_etag(response)
                # 416: an empty file has no first byte to give.
                data = b"" if response.status_code == 416 else self._first(response, length, label)
                return SourceFile(name, size, url=url, version=etag), data

        return retrying(self._policy, read)

    def read(
        self, file: SourceFile, start: int, stop: int, label: str, etag: str | None
    ) -> Generator[bytes, None, None]:
        """Yield a file's bytes from `start` to `stop`, or to its end.

        `etag` is what the file had when it was found, None where its URL never means other bytes.
        Raises SourceChangedError where size or ETag differ.
        """
        assert file.url is not None
        headers = {}
        if start or stop < file.size:
            headers["Range"] = f"bytes={start}-{stop - 1 if stop < file.size else ''}"
        if start and etag:
            headers["If-Range"] = etag
        with self.open(file.url, label, headers) as response:
            # A server without ranges sends the whole file again.
            skip = start - _range_start(response)
            found = _strong_etag(response)
            changed = etag is not None and found != etag and (found is not None or skip > 0)
            if changed or _total_size(response, label) != file.size:
                raise SourceChangedError(f"{label}: the file on the server changed; submit again")
            if skip < 0 or response.status_code == 416:
                raise SourceUnreachableError(f"{label}: the server sends another range than asked")
            for chunk in response.iter_raw():
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    def read_small(self, url: str, most: int, label: str) -> bytes:
        """Return the whole of a remote document of up to `most` bytes."""

        def read() -> bytes:
            with self.open(url, label) as response:
                content = self._first(response, most + 1, label)
            if len(content) > most:
                raise SourceUnreachableError(
                    f"{label}: {response.url.host} answers with more than {most:,} bytes"
                )
            return content

        return retrying(self._policy, read)

    def _first(self, response: httpx2.Response, length: int, label: str) -> bytes:
        return first_bytes(response.iter_raw(), length, self._policy, label)


def _total_size(response: httpx2.Response, label: str) -> int:
    """Return the size of the whole file that the answer is (part of)."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code in (206, 416) and match:
        return int(match[2])
    length = response.headers.get("content-length", "")
    if response.status_code == 200 and length.isdecimal():
        return int(length)
    raise SourceUnreachableError(f"{label}: {response.url.host} does not state the file's size")


def _range_start(response: httpx2.Response) -> int:
    """Return the offset at which the answer's bytes start (0 for the whole file)."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(match[1]) if response.status_code == 206 and match and match[1] else 0


def _strong_etag(response: httpx2.Response) -> str | None:
    """Return the ETag if it vouches for every byte."""
    etag: str = response.headers.get("etag", "")
    return etag if etag.startswith('"') else None


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _seconds(retry_after: str) -> float:
    return min(float(retry_after), _LONGEST_RETRY_AFTER_SECONDS) if retry_after.isdecimal() else 0.0
