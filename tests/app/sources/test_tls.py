"""The address that was checked is used, and TLS still asks for the name in the URI."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from app.contract.errors import SourceUnreachableError
from app.sources import addresses
from app.sources.policy import SourcePolicy
from app.sources.web import WebClient

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the key")


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


class _Server(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def tls_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Serve https for the name localhost, by an authority that the client knows."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
    request = f"req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 {subject}"
    command = ["openssl", *request.split(), "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server = _Server(("127.0.0.1", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(addresses, "tls_context", lambda: client)
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_certificate_is_held_against_the_name(tls_port: int, tmp_path: Path) -> None:
    policy = SourcePolicy(
        cache_dir=tmp_path,
        allowed_hosts=frozenset({f"localhost:{tls_port}", f"127.0.0.1:{tls_port}"}),
        allow_private_addresses=True,
        retry_delays_seconds=(),
    )
    with closing(WebClient(policy, hub=False)) as client:
        assert client.look_at(f"https://localhost:{tls_port}/a", "a", 2, "a")[1] == b"ok"
        with pytest.raises(SourceUnreachableError):
            client.look_at(f"https://127.0.0.1:{tls_port}/a", "a", 2, "a")
