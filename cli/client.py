"""A client of the service, over HTTP as any other: JSON calls, and events as they happen."""

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
# The stream sends a comment every 15 s: longer silence means that the connection is dead.
_SILENCE_SECONDS = 40.0
_RECONNECT_SECONDS = 0.5
_BY_STATUS = {401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError, 503: NotReadyError}


class Client:
    """Calls one service; every failure is an AfluenteError with the service's own words."""

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
        """Return the content at a path."""
        return self._call("GET", path).content

    def post(self, path: str, body: Mapping[str, Any], *, idempotency_key: str) -> Any:
        """Post a document and return the answer; the key makes it safe to post again."""
        headers = {"Idempotency-Key": idempotency_key}
        return self._document("POST", path, json=body, headers=headers)

    def events(self, path: str, *, patience_seconds: float = 60.0) -> Iterator[tuple[str, Any]]:
        """Yield (type, data) of a merge's events until the stream's end.

        A lost connection is taken up again after the last event seen, for `patience_seconds`.
        """
        last, kind = "", ""
        heard_at = time.monotonic()
        while kind != "end":
            try:
                for event in self._stream(path, last):
                    heard_at, kind, last = time.monotonic(), event.event, event.id or last
                    yield kind, json.loads(event.data)
            except httpx2.TransportError as error:
                if time.monotonic() - heard_at > patience_seconds:
                    raise NotReadyError(f"{self.url} cannot be reached: {error}.") from None
            if kind != "end":
                time.sleep(_RECONNECT_SECONDS)

    def _stream(self, path: str, last: str) -> Iterator[httpx2.ServerSentEvent]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        with self._http.stream("GET", path, headers=headers) as answer:
            if answer.status_code >= 500:
                raise httpx2.RemoteProtocolError(f"it answers {answer.status_code}")
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
                "say where it is with --url."
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
                f"{self.url} does not answer as the service does; say where it is with --url."
            ) from None


def _open(url: str, api_key: str | None) -> httpx2.Client:
    """Return the HTTP client; AfluenteError says what is wrong with the URL or the key.

    The key goes to this URL only: redirects are not followed, and to this machine there is no
    proxy, whatever HTTP_PROXY and its like say.
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
        raise UnauthorizedError("The API key has characters that no key has.") from None
    except (httpx2.InvalidURL, ValueError, ImportError) as error:
        # A proxy that HTTP_PROXY or ALL_PROXY names in a way that cannot be used, too.
        raise NotReadyError(f"{url} cannot be called: {error}.") from None


def _refusal(answer: httpx2.Response) -> AfluenteError:
    """Return the error that a problem document describes."""
    if answer.has_redirect_location:
        return NotReadyError(
            f"{answer.url} redirects to {answer.headers['location'][:200]}; if that is the service,"
            " name it with --url (the API key is not sent there by itself)."
        )
    try:
        problem = answer.json()
        text = str(problem["detail"])
        faults = [Problem(item["message"], item["param"]) for item in problem.get("errors") or []]
    except (ValueError, KeyError, TypeError):
        text, faults = f"{answer.url} answered {answer.status_code}.", []
    return _BY_STATUS.get(answer.status_code, RequestRefusedError)(text, problems=faults)


def _given(query: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in query.items() if value is not None}


def _running_here() -> str | None:
    """Return the address of the `afluente up` that runs on the data folder, if one does."""
    from cli.configuration import load_settings, only

    try:
        return str(
            json.loads(Path(load_settings(only("data_dir")).data / "up.json").read_text())["url"]
        )
    except (OSError, ValueError, KeyError):
        return None
