from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.contract.settings import Settings
from app.services import events, wakeups
from app.services.backend import Backend
from app.storage import evaluations, merges
from app.storage.database import writing
from tests.app.routes.conftest import end, serve, succeed, take
from tests.app.routes.test_create_merge import refusal

STREAM = {"Accept": "text/event-stream"}
Event = tuple[int, str, dict[str, Any]]


def parse(lines: Iterator[str]) -> Iterator[Event | str]:
    """Yield (id, type, data) of each event, and each comment as text."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield line
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}


@contextmanager
def streaming(url: str, merge_id: str, last: int | None = None) -> Iterator[Iterator[Event | str]]:
    headers = STREAM | ({"Last-Event-ID": str(last)} if last is not None else {})
    with (
        httpx2.Client(base_url=url, timeout=20) as http,
        http.stream("GET", f"/merges/{merge_id}/events", headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parse(answer.iter_lines())


def test_json_and_stream_say_the_same(client: TestClient, finished: str):
    page = client.get(f"/merges/{finished}/events").json()
    assert page["next_page_token"] is None
    answer = client.get(f"/merges/{finished}/events", headers=STREAM)
    streamed = list(parse(iter(answer.text.split("\n"))))
    assert streamed == [(e["id"], e["type"], e["data"]) for e in page["data"]]
    assert [event["id"] for event in page["data"]] == list(range(1, len(streamed) + 1))
    assert page["data"][-1]["type"] == "end"


def test_json_pages_go_on_where_they_stopped(client: TestClient, finished: str):
    seen, after = [], "0"
    while after is not None:
        url = f"/merges/{finished}/events?page_size=2&after={after}"
        page = client.get(url).json()
        seen += [event["id"] for event in page["data"]]
        after = page["next_page_token"]
    assert seen == list(range(1, len(seen) + 1))


def test_a_stream_resumes_after_the_last_event_seen(client: TestClient, finished: str):
    url = f"/merges/{finished}/events"
    whole = list(parse(iter(client.get(url, headers=STREAM).text.split("\n"))))
    for last in range(len(whole)):
        headers = {**STREAM, "Last-Event-ID": str(last)}
        rest = list(parse(iter(client.get(url, headers=headers).text.split("\n"))))
        assert rest == whole[last:]
    # All is seen: 204 tells a browser not to connect again.
    headers = {**STREAM, "Last-Event-ID": str(len(whole))}
    assert client.get(url, headers=headers).status_code == 204
    empty = client.get(url, headers={**STREAM, "Last-Event-ID": ""})
    assert list(parse(iter(empty.text.split("\n")))) == whole


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30, "9" * 5000, "0" * 5000, "²", "é"])
def test_an_invalid_event_id_is_refused(client: TestClient, finished: str, last: str):
    headers = {**STREAM, "Last-Event-ID": last.encode()}
    answer = client.get(f"/merges/{finished}/events", headers=headers)
    assert refusal(answer, 422, "invalid_request")["errors"][0]["param"] == "Last-Event-ID"


def test_the_stream_of_an_unknown_merge_is_not_found(client: TestClient):
    refusal(client.get("/merges/mrg_x/events", headers=STREAM), 404, "not_found")


@pytest.fixture
def queued(make_settings: Callable[..., Settings], recipe: dict[str, Any]) -> dict[str, Any]:
    return {"make_settings": make_settings, "recipe": recipe}


def _watch(
    settings: Settings, recipe: dict[str, Any], act: Callable[[Backend, str], None]
) -> tuple[list[Event], float]:
    """Stream a merge while `act` works on it; return the events and the seconds they took."""
    with serve(settings) as (url, backend):
        merge_id = httpx2.post(f"{url}/merges", json=recipe).json()["id"]
        with streaming(url, merge_id) as stream:
            first = next(stream)
            assert first == (1, "status", {"status": "queued"})
            time.sleep(0.3)
            started_at = time.monotonic()
            worker = threading.Thread(target=act, args=(backend, merge_id))
            worker.start()
            found = [event for event in stream if not isinstance(event, str)]
            worker.join()
        return found, time.monotonic() - started_at


def _work(backend: Backend, merge_id: str) -> None:
    lease = take(backend.engine, merge_id)
    for done in range(1, 4):
        merges.set_progress(backend.engine, lease, done, 3, "tensors")
        backend.wake(merge_id)
    with writing(backend.engine) as connection:
        evaluation_id = evaluations.create(connection, merge_id, {})
    end(backend.engine, lease, "failed", error={"code": "x", "message": "m"})
    backend.wake(merge_id)
    from app.storage.leases import JobKind, request_cancel

    with writing(backend.engine) as connection:
        request_cancel(connection, JobKind.EVALUATION, evaluation_id)
    backend.wake(merge_id)


def _check(found: list[Event]) -> None:
    kinds = [kind for _, kind, _ in found]
    assert kinds == ["status", *["progress"] * 3, "evaluation", "status", "evaluation", "end"]
    assert [number for number, _, _ in found] == list(range(2, 10))


def test_a_stream_is_woken_through_the_broker(
    make_settings: Callable[..., Settings],
    recipe: dict[str, Any],
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """Without the wake-up the stream would only look again after a minute."""
    monkeypatch.setitem(wakeups._POLL_SECONDS, True, 60.0)
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 60.0)
    found, seconds = _watch(make_settings(broker_url=valkey_url), recipe, _work)
    _check(found)
    assert seconds < 10


def test_a_stream_goes_on_without_a_broker(
    make_settings: Callable[..., Settings], recipe: dict[str, Any]
):
    found, seconds = _watch(make_settings(), recipe, _work)
    _check(found)
    assert seconds < 5


def test_a_stream_goes_on_when_the_broker_is_away(
    make_settings: Callable[..., Settings], recipe: dict[str, Any]
):
    settings = make_settings(broker_url="redis://127.0.0.1:1/0")
    _check(_watch(settings, recipe, _work)[0])


def test_a_quiet_stream_is_kept_alive_and_ends_with_its_merge(
    make_settings: Callable[..., Settings], recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.1)
    with serve(make_settings()) as (url, backend):
        merge_id = httpx2.post(f"{url}/merges", json=recipe).json()["id"]
        with streaming(url, merge_id) as stream:
            next(stream)
            assert next(stream) == ": ping"
            with writing(backend.engine) as connection:
                merges.remove(connection, merge_id)
            assert all(isinstance(rest, str) for rest in stream)


def test_many_idle_streams_hold_no_connection(
    make_settings: Callable[..., Settings], recipe: dict[str, Any]
):
    """More streams than the database's pool and the thread pool have places."""
    with serve(make_settings()) as (url, backend):
        merge_id = httpx2.post(f"{url}/merges", json=recipe).json()["id"]
        limits = httpx2.Limits(max_connections=100)
        with httpx2.Client(base_url=url, timeout=20, limits=limits) as http:
            opened = []
            for _ in range(60):
                request = http.build_request("GET", f"/merges/{merge_id}/events", headers=STREAM)
                opened.append(http.send(request, stream=True))
            assert http.get("/merges").status_code == 200
            succeed(backend.engine, backend.store, merge_id)
            for answer in opened:
                assert "event: end" in answer.read().decode()


def test_a_disconnected_reader_is_removed(
    make_settings: Callable[..., Settings], recipe: dict[str, Any]
):
    with serve(make_settings()) as (url, _backend):
        merge_id = httpx2.post(f"{url}/merges", json=recipe).json()["id"]
        with streaming(url, merge_id) as stream:
            next(stream)
            assert _readers() == 1
        deadline = time.monotonic() + 5
        while _readers() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _readers() == 0


def _readers() -> int:
    """Return how many streams wait for a wake-up in this process."""
    gc.collect()
    every = [one for one in gc.get_objects() if type(one) is wakeups.Wakeups]
    return sum(len(waiting) for found in every for waiting in found._waiting.values())
