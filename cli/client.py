"""An HTTP client of the service: JSON calls and event streams."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from app.contract.errors import (
    AfluenteError,
    ForbiddenError,
    NotFoundError,
    NotReadyError,
    Problem,
    RequestRefusedError,
    UnauthorizedError,
)
from app.contract.hosts import is_loopback_name

_DEFAULT_URL = "http://127.0.0.1:8000"
# The stream sends a comment every 15 s, so longer silence means a dead connection.
_SILENCE_SECONDS = 40.0
_RECONNECT_SECONDS = 0.5
_BY_STATUS = {401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError, 503: NotReadyError}


class Client:
    """Calls a service; every failure is an AfluenteError with the service's message."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        self.url = (url or _running_here() or _DEFAULT_URL).rstrip("/")
        self._http = _open(self.url, api_key)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: str | None) -> Any:
        """Return the JSON document at a path."""
        return self._document("GET", path, params=_given(query))

    def get_text(self, path: str, **query: str | None) -> str:
        """Return the text at a path."""
        return self._call("GET", path, params=_given(query)).text

    def get_bytes(self, path: str) -> bytes:
        """Return the bytes at a path."""
        return self._call("GET", path).content

    def post(self, path: str, body: Mapping[str, Any], *, idempotency_key: str) -> Any:
        """Post a document and return the response; the key makes it safe to repeat."""
        headers = {"Idempotency-Key": idempotency_key}
        return self._document("POST", path, json=body, headers=headers)

    def events(self, path: str, *, patience_seconds: float = 60.0) -> Iterator[tuple[str, Any]]:
        """Yield (type, data) of a merge's events until the stream's end.

        Reconnects for up to `patience_seconds` after the last event.
        """
        last, kind = "", ""
        last_at = time.monotonic()
        while kind != "end":
            try:
                for event in self._stream(path, last):
                    last_at, kind, last = time.monotonic(), event.event, event.id or last
                    yield kind, json.loads(event.data)
            except httpx2.TransportError as error:
                if time.monotonic() - last_at > patience_seconds:
                    raise NotReadyError(f"{self.url} cannot be reached: {error}.") from None
            if kind != "end":
                time.sleep(_RECONNECT_SECONDS)

    def _stream(self, path: str, last: str) -> Iterator[httpx2.ServerSentEvent]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        with self._http.stream("GET", path, headers=headers) as answer:
            if answer.status_code >= 500:
                raise httpx2.RemoteProtocolError(f"status {answer.status_code}")
            if not answer.is_success:
                answer.read()
                raise _refusal(answer)
            yield from httpx2.EventSource(answer)

    def _call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise NotReadyError(
                f"{self.url} cannot be reached ({error}); start the service with `afluente up`, or "
                "give its address with --url."
            ) from None
        if not answer.is_success:
            raise _refusal(answer)
        return answer

    def _document(self, method: str, path: str, **options: Any) -> Any:
        answer = self._call(method, path, **options)
        try:
            return answer.json()
        except ValueError:
            raise NotReadyError(
                f"{self.url} is not an Afluente service; give its address with --url."
            ) from None


def _open(url: str, api_key: str | None) -> httpx2.Client:
    """Return the HTTP client; AfluenteError for an invalid URL or key.

    The key is sent only to this URL: redirects are not followed, and HTTP_PROXY and the like are
    ignored for this machine.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        return httpx2.Client(
            base_url=url,
            headers=headers,
            timeout=_SILENCE_SECONDS,
            follow_redirects=False,
            trust_env=not is_loopback_name(httpx2.URL(url).host),
        )
    except UnicodeEncodeError:
        raise UnauthorizedError("The API key contains invalid characters.") from None
    except (httpx2.InvalidURL, ValueError, ImportError) as error:
        # Or an invalid proxy in HTTP_PROXY or ALL_PROXY.
        raise NotReadyError(f"{url} cannot be called: {error}.") from None


def _refusal(answer: httpx2.Response) -> AfluenteError:
    """Return the error that a problem document describes."""
    if answer.has_redirect_location:
        return NotReadyError(
            f"{answer.url} redirects to {answer.headers['location'][:200]}; if that is the service,"
            " give it with --url (the API key is not sent to redirects)."
        )
    try:
        problem = answer.json()
        text = str(problem["detail"])
        faults = [Problem(item["message"], item["param"]) for item in problem.get("errors") or []]
    except (ValueError, KeyError, TypeError):
        text, faults = f"{answer.url} responded with status {answer.status_code}.", []
    return _BY_STATUS.get(answer.status_code, RequestRefusedError)(text, problems=faults)


def _given(query: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in query.items() if value is not None}


def _running_here() -> str | None:
    """Return the address of the `afluente up` that uses the data folder, if one runs."""
    from cli.configuration import load_settings, only

    try:
        return str(
            json.loads(Path(load_settings(only("data_dir")).data / "up.json").read_text())["url"]
        )
    except (OSError, ValueError, KeyError):
        return None
