from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.contract.errors import ForbiddenError
from app.contract.settings import Settings
from app.services import access
from app.services.access import refuse_open_exposure
from app.services.backend import Backend
from app.storage import keys
from tests.app.routes.test_create_merge import refusal

OPEN = ("/healthz", "/version", "/openapi.json", "/docs")
GUARDED = ("/merges", "/methods", "/methods/soup", "/metrics", "/merges/x", "/merges/x/wer")


def bearer(backend: Backend, *scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys.create(backend.engine, 'k', scopes)[1]}"}


def test_without_keys_nobody_is_asked_for_one(client: TestClient):
    assert {client.get(path).status_code for path in (*OPEN, "/merges", "/metrics")} == {200}


def test_from_the_first_key_on_everyone_is(
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
def test_an_unknown_key_is_refused_even_where_none_is_needed(client: TestClient, given: str):
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


def test_who_may_not_call_learns_nothing_of_the_body_or_the_merge(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(access, "_REMEMBER_SECONDS", 0.0)
    bearer(backend, "read")
    refusal(client.post("/merges", content=b"{"), 401, "unauthorized")
    refusal(client.get("/merges?page_size=0"), 401, "unauthorized")


@pytest.mark.parametrize("host", ["evil.example", "192.168.0.9", "localhost.evil.example"])
def test_a_name_that_was_made_to_point_here_is_refused(client: TestClient, host: str):
    """DNS rebinding: a web page's own name may resolve to 127.0.0.1."""
    refusal(client.get("/merges", headers={"Host": host}), 403, "forbidden")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000"])
def test_this_machine_goes_by_several_names(client: TestClient, host: str):
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
