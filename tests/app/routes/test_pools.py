"""One kind of slow work does not block the others: the hub, SQLite's write lock, scoring."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from app.contract.errors import NotReadyError
from app.contract.settings import Settings
from app.routes.pools import Pool
from app.storage.database import connect, migrate
from tests.app.routes.conftest import serve
from tests.app.sources.conftest import silent_server

# Seconds, on a busy machine; what waits for a hub or a lock takes ten and more.
PROMPT = 8
PROBED = ("/healthz", "/merges", "/readyz", "/metrics", "/methods")


def call(url: str, method: str, path: str, **options: Any) -> tuple[int, float, Any]:
    """Return (status, seconds, document)."""
    begun = time.monotonic()
    answer = httpx2.request(method, url + path, timeout=60, **options)
    kind = answer.headers.get("content-type", "")
    return answer.status_code, time.monotonic() - begun, answer.json() if "json" in kind else None


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub that accepts connections and says nothing."""
    with silent_server() as address:
        yield f"http://{address}"


def test_while_the_hub_hangs_everything_else_answers(
    make_settings: Callable[..., Settings], recipe: dict[str, Any]
):
    remote = recipe | {"base": "hf://a/b", "checkpoints": ["hf://a/c", "hf://a/d"]}
    with ExitStack() as stack:
        hub = stack.enter_context(ExitStack())
        settings = make_settings(hf_endpoint=f"http://{hub.enter_context(silent_server())}")
        url, _ = stack.enter_context(serve(settings))
        pool = stack.enter_context(ThreadPoolExecutor(45))
        waiting = [pool.submit(call, url, "POST", "/merges", json=remote) for _ in range(45)]
        time.sleep(0.5)
        for path in PROBED:
            status, seconds, _ = call(url, "GET", path)
            assert seconds < PROMPT, path
            assert status in {200, 503}
        # Local checkpoints do not wait for the hub either, nor do changes.
        status, seconds, merge = call(url, "POST", "/merges", json=recipe)
        assert (status, seconds < PROMPT) == (202, True)
        status, seconds, _ = call(url, "POST", f"/merges/{merge['id']}/cancel")
        assert (status, seconds < PROMPT) == (202, True)
        hub.close()
        outcomes = [outcome.result() for outcome in waiting]
        assert {status for status, _, _ in outcomes} == {503}
        assert {document["code"] for _, _, document in outcomes} == {"source_unreachable"}


def test_a_request_whose_hub_hangs_is_refused_at_its_deadline(
    make_settings: Callable[..., Settings], recipe: dict[str, Any], hub: str
):
    settings = make_settings(hf_endpoint=hub, source_deadline_seconds=0.5)
    with serve(settings) as (url, _):
        answer = httpx2.post(f"{url}/merges", json=recipe | {"base": "hf://a/b"}, timeout=60)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "hf://a/b" in answer.json()["detail"]


def test_while_another_holds_the_write_lock_reads_do_not_wait(
    make_settings: Callable[..., Settings], recipe: dict[str, Any]
):
    settings = make_settings()
    with serve(settings) as (url, _), ThreadPoolExecutor(90) as pool:
        _, _, merge = call(url, "POST", "/merges", json=recipe)
        other = sqlite3.connect(settings.data / "afluente.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        path = f"/merges/{merge['id']}"
        writing = [pool.submit(call, url, "POST", "/merges", json=recipe) for _ in range(60)]
        writing += [pool.submit(call, url, "POST", f"{path}/cancel") for _ in range(20)]
        writing += [pool.submit(call, url, "DELETE", path) for _ in range(10)]
        time.sleep(0.5)
        for read in (*PROBED, path, f"{path}/events", f"{path}/evaluations", f"{path}/wer"):
            status, seconds, _ = call(url, "GET", read)
            assert seconds < PROMPT, read
            assert status in {200, 503}
        other.execute("ROLLBACK")
        other.close()
        statuses = {outcome.result()[0] for outcome in writing}
    assert 202 in statuses
    assert statuses <= {202, 204, 404, 409, 503}


def test_without_a_queue_a_submission_takes_no_longer(
    make_settings: Callable[..., Settings], recipe: dict[str, Any], hub: str
):
    """The row is enough: the message is a hint, sent in the background."""
    for broker in (hub.replace("http", "redis"), "redis://127.0.0.1:9/0"):
        with serve(make_settings(broker_url=broker)) as (url, _):
            call(url, "POST", "/merges?dry_run=true", json=recipe)  # imports
            for _ in range(3):
                status, seconds, merge = call(url, "POST", "/merges", json=recipe)
                assert (status, seconds < 4) == (202, True), broker
            status, seconds, _ = call(url, "POST", f"/merges/{merge['id']}/cancel")
            assert (status, seconds < 4) == (202, True), broker
            assert call(url, "GET", "/readyz")[1] < PROMPT


def test_an_api_starts_while_another_process_writes(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    engine = connect(url)
    migrate(engine)
    engine.dispose()
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    again = connect(url)
    migrate(again)
    again.dispose()
    other.close()
    assert time.monotonic() - begun < 3


def test_a_pool_has_a_bound_and_a_deadline():
    pool = Pool("test", threads=2, busy="busy", waiting=1, patience_seconds=0.3)
    free = threading.Event()
    outcomes: list[str] = []

    async def ask() -> None:
        try:
            await pool.run(free.wait, 10)
            outcomes.append("done")
        except NotReadyError as error:
            outcomes.append(error.message)

    async def scenario() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
                await anyio.sleep(0.02)
            assert outcomes == ["busy"]  # the fourth: one waits already
            await anyio.sleep(0.5)
            assert outcomes == ["busy", "busy"]  # the third: it has waited too long
            free.set()
        assert outcomes == ["busy", "busy", "done", "done"]
        assert await pool.run(lambda: 7) == 7

    anyio.run(scenario)
