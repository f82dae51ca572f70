from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import ForbiddenError
from app.contract.settings import Settings
from app.services import access
from app.services.access import refuse_open_exposure
from app.services.backend import Backend
from app.storage import keys
from tests.app.routes.conftest import serve
from tests.app.routes.test_create_merge import refusal

OPEN = ("/healthz", "/version", "/openapi.json", "/docs")
GUARDED = ("/merges", "/methods", "/methods/soup", "/metrics", "/merges/x", "/merges/x/wer")


def bearer(backend: Backend, *scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys.create(backend.engine, 'k', scopes)[1]}"}


def test_without_keys_no_key_is_required(client: TestClient):
    assert {client.get(path).status_code for path in (*OPEN, "/merges", "/metrics")} == {200}


def test_from_the_first_key_on_everyone_needs_one(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(access, "_REMEMBER_SECONDS", 0.0)
    headers = bearer(backend, "read")
    for path in GUARDED:
        answer = client.get(path)
        refusal(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert client.get(path, headers=headers).status_code in {200, 404}
    assert {client.get(path).status_code for path in OPEN} == {200}
    assert client.get("/readyz").status_code == 503


def test_keys_can_be_required_before_there_is_one(make_client: Callable[..., TestClient]):
    client = make_client(require_api_key=True)
    refusal(client.get("/merges"), 401, "unauthorized")
    headers = bearer(client.app.state.backend, "read")
    assert client.get("/merges", headers=headers).status_code == 200


@pytest.mark.parametrize("given", ["Bearer afl_wrong", "Bearer x", "bearer afl_"])
def test_an_unknown_key_is_refused_even_if_none_is_required(client: TestClient, given: str):
    refusal(client.get("/merges", headers={"Authorization": given}), 401, "unauthorized")


def test_a_revoked_key_is_refused_at_once(client: TestClient, backend: Backend):
    headers = bearer(backend, "read")
    assert client.get("/merges", headers=headers).status_code == 200
    keys.revoke(backend.engine, keys.every(backend.engine)[0]["id"])
    refusal(client.get("/merges", headers=headers), 401, "unauthorized")


def test_reading_keys_cannot_write(client: TestClient, backend: Backend, recipe: dict[str, Any]):
    headers = bearer(backend, "read")
    for method, path in (
        ("POST", "/merges"), ("POST", "/merges/x/cancel"), ("POST", "/merges/x/retry"),
        ("DELETE", "/merges/x"), ("POST", "/merges/x/evaluations"),
    ):  # fmt: skip
        answer = client.request(method, path, headers=headers)
        assert '"write"' in refusal(answer, 403, "forbidden")["detail"]
    writing = bearer(backend, "write")
    assert client.post("/merges", json=recipe, headers=writing).status_code == 202
    assert client.get("/merges", headers=writing).status_code == 200


def test_a_refused_caller_learns_nothing_about_body_or_merge(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(access, "_REMEMBER_SECONDS", 0.0)
    bearer(backend, "read")
    refusal(client.post("/merges", content=b"{"), 401, "unauthorized")
    refusal(client.get("/merges?page_size=0"), 401, "unauthorized")


@pytest.mark.parametrize("host", ["evil.example", "192.168.0.9", "localhost.evil.example"])
def test_a_rebound_dns_name_is_refused(client: TestClient, host: str):
    """DNS rebinding: a web page's own name may resolve to 127.0.0.1."""
    refusal(client.get("/merges", headers={"Host": host}), 403, "forbidden")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000"])
def test_all_loopback_names_are_accepted(client: TestClient, host: str):
    assert client.get("/merges", headers={"Host": host}).status_code == 200


def test_an_open_service_without_keys_is_refused(backend: Backend, tmp_path: Path):
    refuse_open_exposure(Settings(host="127.0.0.1"), backend.engine)
    refuse_open_exposure(Settings(host="localhost"), backend.engine)
    for host in ("0.0.0.0", "::", "asr.example.com", "10.0.0.1"):
        with pytest.raises(ForbiddenError, match="afluente keys create"):
            refuse_open_exposure(Settings(host=host), backend.engine)
    keys.create(backend.engine, "k", ["read"])
    refuse_open_exposure(Settings(host="0.0.0.0"), backend.engine)


def test_no_secret_is_ever_shown(client: TestClient, backend: Backend, recipe: dict[str, Any]):
    headers = bearer(backend, "write")
    secret = headers["Authorization"].split()[1]
    answers = [
        client.post("/merges", json=recipe, headers=headers),
        client.get("/merges", headers={"Authorization": f"Bearer {secret}x"}),
        client.get("/metrics", headers=headers),
    ]
    assert not any(secret in answer.text for answer in answers)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1"])
def test_a_service_on_the_network_asks_for_a_key_after_the_last_one_is_revoked(
    make_client: Callable[..., TestClient], host: str
):
    client = make_client(host=host)
    for name in ("localhost", host):
        refusal(client.get("/merges", headers={"Host": name}), 401, "unauthorized")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "10.0.0.1"])
def test_a_connection_to_another_address_is_not_local_whatever_name_it_carries(
    client: TestClient, name: str
):
    with TestClient(client.app, base_url="http://10.0.0.1") as stranger:
        refusal(stranger.get("/merges", headers={"Host": name}), 403, "forbidden")


@pytest.mark.parametrize(
    "host",
    [
        "a{b}.evil.example", 'a"b.evil.example', "a`b.evil.example", "evil.example@localhost",
        "evil.example:99999", "localhost:99999", "localhost:", "localhost:8000:8000", "", " ",
        ":80",
        "[::1", "::1", "[::1]x", "localhost,evil.example", "localhost/", "localhost#", "loc alhost",
        "localhost\\", "http://localhost", "..", ".localhost", "localhost..", "%6cocalhost", "\x7f",
    ],
)  # fmt: skip
def test_a_malformed_host_is_refused_not_taken_for_none(client: TestClient, host: str):
    for path in ("/merges", "/metrics"):
        refusal(client.get(path, headers={"Host": host}), 400, "refused")


@pytest.mark.parametrize(
    "host", ["2130706433", "127.1", "0x7f.0.0.1", "0", "[::ffff:8.8.8.8]", "localhost.example",
             "xn--lcalhost-5ya", "notlocalhost", "[::]", "169.254.169.254"],
)  # fmt: skip
def test_only_plain_names_of_this_machine_are_local(client: TestClient, host: str):
    answer = client.get("/merges", headers={"Host": host})
    assert answer.status_code in {400, 403}


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30))
def test_any_host_header_is_refused_unless_local(wire: Any, host: str):
    status = wire(f"GET /merges HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    name = re.sub(r":\d{1,5}$", "", host).strip("[]").rstrip(".").lower()
    local = re.fullmatch(r"(.*\.)?localhost|127(\.\d+){3}|[0:]+1", name)
    assert status in {200, 400, 403}
    assert status != 200 or local


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], int]]:
    """Send bytes as they are to a real server, and return its status."""
    with serve(Settings(data_dir=tmp_path_factory.mktemp("data"))) as (url, _):
        port = int(url.rpartition(":")[2])

        def send(head: str) -> int:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(head.encode("latin-1"))
                return int(connection.recv(100).split()[1])

        yield send


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /merges HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("GET /merges HTTP/1.1\r\n", 400),
        ("GET /merges HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        ("GET /merges HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        ("GET /merges HTTP/1.1\r\nHost: \xe9vil.example\r\n", 400),
        ("GET /merges HTTP/1.0\r\n", 403),
        ("GET /merges HTTP/1.0\r\nHost: evil.example\r\n", 403),
        ("GET http://evil.example/merges HTTP/1.1\r\nHost: localhost\r\n", 404),
        ("GET http://evil.example/merges HTTP/1.1\r\nHost: evil.example\r\n", 404),
        ("GET //evil.example/merges HTTP/1.1\r\nHost: localhost\r\n", 404),
        ("GET /healthz HTTP/1.0\r\n", 200),
    ],
)  # fmt: skip
def test_a_request_needs_exactly_one_valid_host(wire: Any, head: str, status: int):
    assert wire(f"{head}Connection: close\r\n\r\n") == status


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"},
        {"X-Forwarded-For": "unknown"},
        {"X-Forwarded-Host": "afluente.example"},
        {"X-Real-IP": "2001:db8::1"},
        {"Forwarded": 'for="[2001:db8::1]:9";host=localhost'},
        {"Forwarded": "host=afluente.example"},
    ],
)
def test_a_remote_client_behind_a_local_proxy_is_not_local(
    client: TestClient, headers: dict[str, str]
):
    refusal(client.get("/merges", headers=headers), 403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost:3000"},
        {"X-Forwarded-For": "::1", "X-Real-IP": "::1"},
        {"Forwarded": "for=127.0.0.1;proto=http"},
    ],
)
def test_a_local_client_behind_a_local_proxy_is_local(client: TestClient, headers: dict[str, str]):
    assert client.get("/merges", headers=headers).status_code == 200


CHANGES = [
    ("POST", "/merges"), ("POST", "/merges?dry_run=true"), ("POST", "/merges/{id}/cancel"),
    ("POST", "/merges/{id}/retry"), ("POST", "/merges/{id}/evaluations"),
    ("POST", "/merges/{id}/evaluations/x/cancel"), ("DELETE", "/merges/{id}"),
]  # fmt: skip
OTHER_SITES: list[dict[str, str]] = [
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:3000"},
    {"Origin": "http://localhost.evil.example"}, {"Origin": "http://localhost@evil.example"},
    {"Origin": "http://["}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, {"Sec-Fetch-Site": "new"},
]  # fmt: skip


@pytest.mark.parametrize("keyed", [False, True])
def test_pages_of_other_origins_cannot_change_anything(
    client: TestClient, backend: Backend, merge_id: str, keyed: bool
):
    key = bearer(backend, "admin") if keyed else {}
    for method, path in CHANGES:
        for headers in OTHER_SITES:
            answer = client.request(method, path.format(id=merge_id), headers=headers | key)
            refusal(answer, 403, "forbidden")
    assert client.get(f"/merges/{merge_id}", headers=key).json()["status"] == "queued"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://localhost"}, {"Sec-Fetch-Site": "same-origin"},
     {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin", "Origin": "https://public"}],
)  # fmt: skip
def test_programs_and_pages_of_the_service_can_change_things(
    client: TestClient, merge_id: str, headers: dict[str, str]
):
    assert client.post(f"/merges/{merge_id}/cancel", headers=headers).status_code == 202


def test_keys_are_required_after_the_last_one_is_revoked(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(access, "_REMEMBER_SECONDS", 0.0)
    bearer(backend, "read")
    keys.revoke(backend.engine, keys.every(backend.engine)[0]["id"])
    refusal(client.get("/merges"), 401, "unauthorized")
