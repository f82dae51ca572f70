"""Reads from web servers: each redirect checked, faults retried, secrets kept to their origin."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx2

from app.contract.errors import (
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from app.sources.addresses import PublicBackend, PublicTransport
from app.sources.policy import SourcePolicy

_MAX_REDIRECTS = 5
_PASSING_FAULTS = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_RETRY_AFTER_SECONDS = 10.0
_WAITS_FOR_A_PREFIX = 2
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")

_T = TypeVar("_T")


class PassingFaultError(SourceUnreachableError):
    """A fault worth another attempt, after `retry_after_seconds` if the server says so."""

    retry_after_seconds: float = 0.0


@dataclass(frozen=True)
class Prefix:
    """The first bytes of a remote file, its whole size, and its strong ETag if it has one."""

    data: bytes
    size: int
    etag: str | None


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

    def __enter__(self) -> WebClient:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    @contextmanager
    def open(
        self, url: str, label: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx2.Response]:
        """Give the open answer (200, 206 or 416) to a GET, redirects followed.

        Raises:
            SourceNotFoundError, SourceNotAllowedError, SourceUnreachableError: by its status, and
                for whatever goes wrong while the answer is read.

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
        if self._hub_origin is None and not _is_allowed(origin, self._policy.allowed_hosts):
            raise SourceNotAllowedError(
                f"{label}: the host {url.host} (port {origin[2]}) is not allowed here; "
                "the operator lists hosts in AFLUENTE_ALLOWED_HOSTS"
            )

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

    def read_prefix(self, url: str, length: int, label: str) -> Prefix:
        """Return a remote file's first `length` bytes (1 at least) and its size."""

        def read() -> Prefix:
            with self.open(url, label, {"Range": f"bytes=0-{max(length, 1) - 1}"}) as response:
                size = total_size(response, label)
                # 416: an empty file has no first byte to give.
                data = b"" if response.status_code == 416 else self._first(response, length, label)
                return Prefix(data, size, strong_etag(response))

        return retrying(self._policy, read)

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
        # The client's timeout is for one wait; a server that drips must not hold a request.
        patience = self._policy.patience_seconds(label)
        deadline = time.monotonic() + _WAITS_FOR_A_PREFIX * patience
        data = bytearray()
        for chunk in response.iter_raw():
            data += chunk
            if len(data) >= length:
                break
            if time.monotonic() > deadline:
                raise SourceUnreachableError(f"{label}: {response.url.host} sends too slowly")
        return bytes(data[:length])


def retrying(policy: SourcePolicy, operation: Callable[[], _T]) -> _T:
    """Return what the operation returns, tried again after a PassingFaultError."""
    for delay in policy.retry_delays_seconds:
        try:
            return operation()
        except PassingFaultError as fault:
            pause = max(delay, fault.retry_after_seconds)
            if not policy.may_wait(pause):
                raise
            time.sleep(pause)
    return operation()


def total_size(response: httpx2.Response, label: str) -> int:
    """Return the size of the whole file that the answer is (part of)."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code in (206, 416) and match:
        return int(match[2])
    length = response.headers.get("content-length", "")
    if response.status_code == 200 and length.isdecimal():
        return int(length)
    raise SourceUnreachableError(f"{label}: {response.url.host} does not state the file's size")


def range_start(response: httpx2.Response) -> int:
    """Return the offset at which the answer's bytes start (0 for the whole file)."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(match[1]) if response.status_code == 206 and match and match[1] else 0


def strong_etag(response: httpx2.Response) -> str | None:
    """Return the ETag if it vouches for every byte."""
    etag: str = response.headers.get("etag", "")
    return etag if etag.startswith('"') else None


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _is_allowed(origin: tuple[str, str, int], allowed: frozenset[str]) -> bool:
    _, host, port = origin
    for entry in allowed:
        name, _, stated = entry.rpartition(":") if re.search(r":\d+$", entry) else (entry, "", "")
        same = host.endswith(name[1:]) if name.startswith("*.") else host == name.strip("[]")
        if same and port == int(stated or 443):
            return True
    return False


def _seconds(retry_after: str) -> float:
    return min(float(retry_after), _LONGEST_RETRY_AFTER_SECONDS) if retry_after.isdecimal() else 0.0
