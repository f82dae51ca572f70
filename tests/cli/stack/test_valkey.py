from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cli.stack.valkey import Valkey
from worker.processes.children import Child, stop


def _client(valkey: Valkey) -> redis.Redis:
    client = redis.Redis.from_url(valkey.url)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
        except (redis.ConnectionError, redis.BusyLoadingError):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return client


@pytest.fixture
def valkey(tmp_path: Path) -> Valkey:
    return Valkey.in_folder(tmp_path / "a folder?[b]*\n#\\'\"é %(x)s" / "valkey")


@pytest.fixture
def server(valkey: Valkey) -> Iterator[Child]:
    child = valkey.child()
    child.start()
    yield child
    stop([child])


def test_the_queue_asks_for_its_password(valkey, server):
    _client(valkey).close()
    with (
        redis.Redis.from_url(valkey.safe_url) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_no_secret_is_in_a_command_line_or_readable_by_others(valkey, server):
    _client(valkey).close()
    assert valkey.password not in Path(f"/proc/{server.pid}/cmdline").read_text()
    assert valkey.password not in valkey.safe_url
    assert (valkey.folder / "valkey.conf").stat().st_mode & 0o077 == 0


def test_a_killed_queue_restarts_on_its_port_with_its_messages(valkey, server):
    with _client(valkey) as client:
        client.lpush("queue", "message")
        os.kill(server.pid, signal.SIGKILL)
        news = []
        while not any("was restarted" in text for text in news):
            news += filter(None, [server.watch()])
            time.sleep(0.02)
        assert news[0].startswith("valkey was killed by SIGKILL")
    with _client(valkey) as client:
        assert client.lrange("queue", 0, -1) == [b"message"]


def test_messages_survive_a_clean_stop(valkey, server):
    with _client(valkey) as client:
        client.lpush("queue", "message")
    assert stop([server]) == []
    again = Valkey.in_folder(valkey.folder)
    child = again.child()
    child.start()
    try:
        with _client(again) as client:
            assert client.lrange("queue", 0, -1) == [b"message"]
    finally:
        stop([child])
