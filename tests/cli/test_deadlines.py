"""Idle client connections are closed, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn

from app.contract.settings import Settings
from app.main import create_app
from cli.deadlines import with_deadline

SECONDS = 0.6


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    data: Path = tmp_path_factory.mktemp("data")
    app = create_app(Settings(data_dir=data, request_seconds=SECONDS))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="critical", http=with_deadline(SECONDS))
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def dripping(port: int, head: bytes, drip: bytes) -> bytes:
    """Send the head, then a byte now and then; return what came before the server closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
        connection.sendall(head)
        received, begun = b"", time.monotonic()
        while time.monotonic() - begun < 15:
            try:
                chunk = connection.recv(65536)
                if not chunk:
                    return received
                received += chunk
            except TimeoutError:
                if drip:
                    connection.sendall(drip)
            except ConnectionError:
                return received
    raise AssertionError("the connection was held")


JSON = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"


@pytest.mark.parametrize("drip", [b"", b"A"])
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", b""),
        (b"GET /merges HTTP/1.1\r\nHost: localh", b""),
        (b"POST /merges HTTP/1.1\r\n" + JSON + b"\r\n", b"408"),
        (b"POST /merges HTTP/1.1\r\n" + JSON + b"\r\n{", b"408"),
        # The answer does not wait for these bodies, and nobody else does.
        (b"POST /merges/x/cancel HTTP/1.1\r\n" + JSON + b"\r\n", b"404"),
        (b"GET /healthz HTTP/1.1\r\n" + JSON + b"\r\n", b"200"),
        (b"POST /merges HTTP/1.1\r\nOrigin: null\r\n" + JSON + b"\r\n", b"403"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea", b"200"),
    ],
)
def test_a_client_that_does_not_send_is_disconnected(
    port: int, head: bytes, status: bytes, drip: bytes
):
    answer = dripping(port, head, drip)
    assert answer[9:12] == status


def test_a_client_that_sends_in_time_is_served_for_longer(port: int):
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(4):
            assert client.get("/healthz").status_code == 200
            time.sleep(SECONDS / 2)
