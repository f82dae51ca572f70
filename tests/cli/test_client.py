"""The command line's HTTP client: which hosts it calls, and where it sends an API key."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.contract.errors import AfluenteError, NotReadyError
from cli.client import Client

PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")


class Server:
    """Answers every GET alike and remembers what it was asked."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.body = b'{"id": "x"}'

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.seen.append((handler.path, handler.headers.get("Authorization")))
                handler.send_response(status)
                for name, value in (headers or {}).items():
                    handler.send_header(name, value)
                handler.send_header("Content-Length", str(len(self.body)))
                handler.end_headers()
                handler.wfile.write(self.body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def service() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(502)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in PROXIES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
    yield server
    server.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_this_machine_is_called_directly_whatever_the_environment_says(
    service: Server, proxy: Server, host: str
):
    with Client(f"http://{host}:{service.port}", "afl_secret") as client:
        assert client.get("/merges") == {"id": "x"}
    assert service.seen == [("/merges", "Bearer afl_secret")]
    assert proxy.seen == []


@pytest.mark.parametrize("url", ["http://[::1]:9", "http://127.1.2.3:9", "http://app.localhost:9"])
def test_loopback_addresses_never_use_the_proxy(proxy: Server, url: str):
    with Client(url, "afl_secret") as client, pytest.raises(NotReadyError):
        client.get("/merges")
    assert proxy.seen == []


def test_a_proxy_of_another_kind_does_not_hinder_local_calls(
    service: Server, monkeypatch: pytest.MonkeyPatch
):
    for value in ("socks5://127.0.0.1:9", "nonsense://x", "::"):
        for name in PROXIES:
            monkeypatch.setenv(name, value)
        with Client(f"http://127.0.0.1:{service.port}") as client:
            assert client.get("/merges") == {"id": "x"}
        with pytest.raises(AfluenteError):
            Client("http://asr.example")


def test_another_machine_is_called_as_the_environment_says(
    proxy: Server, monkeypatch: pytest.MonkeyPatch
):
    with Client("http://asr.example:8000") as client, pytest.raises(AfluenteError):
        client.get("/merges")
    assert [path for path, _ in proxy.seen] == ["http://asr.example:8000/merges"]
    monkeypatch.setenv("NO_PROXY", "asr.invalid")
    with Client("http://asr.invalid:8000") as client, pytest.raises(NotReadyError):
        client.get("/merges")
    assert len(proxy.seen) == 1


def test_the_key_follows_no_redirect(service: Server):
    moved = Server(307, {"Location": f"http://127.0.0.1:{service.port}/merges"})
    with Client(f"http://127.0.0.1:{moved.port}", "afl_secret") as client:
        with pytest.raises(NotReadyError, match="redirects to"):
            client.get("/merges")
        with pytest.raises(NotReadyError, match="redirects to"):
            list(client.events("/merges/x/events"))
    moved.close()
    assert service.seen == []


def test_netrc_is_never_read(service: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with Client(f"http://127.0.0.1:{service.port}") as client:
        client.get("/merges")
    assert service.seen == [("/merges", None)]


@pytest.mark.parametrize("url", ["http://[", "http://a b", "nowhere", "ftp://x", "http://:0x/"])
def test_an_invalid_url_is_reported(url: str):
    with pytest.raises(AfluenteError), Client(url) as client:
        client.get("/merges")


def test_an_invalid_key_is_reported(service: Server):
    with pytest.raises(AfluenteError, match="API key"):
        Client(f"http://127.0.0.1:{service.port}", "afl_ü—")


def test_another_service_at_the_url_is_reported(service: Server):
    service.body = b"<html>"
    with (
        Client(f"http://127.0.0.1:{service.port}") as client,
        pytest.raises(NotReadyError, match="is not an Afluente service"),
    ):
        client.get("/merges")
