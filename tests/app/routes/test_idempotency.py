from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.services.backend import Backend
from app.storage import keys, merges
from tests.app.routes.conftest import end, take
from tests.app.routes.test_create_merge import refusal

KEY = {"Idempotency-Key": "5b7c6f0e-3f5a"}


def test_the_same_request_again_is_the_same_merge(
    client: TestClient, backend: Backend, recipe: dict[str, Any]
):
    first = client.post("/merges", json=recipe, headers=KEY)
    assert first.status_code == 202
    spelled_out = {**recipe, "seed": 0, "rules": [], "output": {"max_shard_size": "5GB"}}
    again = client.post("/merges", json=spelled_out, headers=KEY)
    assert again.status_code == 200
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert len(merges.page(backend.engine)) == 1


def test_another_request_with_the_key_is_refused(client: TestClient, recipe: dict[str, Any]):
    client.post("/merges", json=recipe, headers=KEY)
    answer = client.post("/merges", json={**recipe, "seed": 1}, headers=KEY)
    refusal(answer, 422, "idempotency_mismatch")


def test_a_refusal_is_not_remembered(client: TestClient, recipe: dict[str, Any], models: Path):
    wrong = {**recipe, "base": f"file://{models}/nowhere"}
    refusal(client.post("/merges", json=wrong, headers=KEY), 422, "source_not_found")
    assert client.post("/merges", json=recipe, headers=KEY).status_code == 202


def test_the_key_of_a_deleted_merge_is_gone(client: TestClient, recipe: dict[str, Any]):
    merge = client.post("/merges", json=recipe, headers=KEY).json()
    client.post(merge["links"]["cancel"])
    assert client.delete(merge["links"]["self"]).status_code == 204
    refusal(client.post("/merges", json=recipe, headers=KEY), 410, "gone")


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_an_invalid_key_is_refused(client: TestClient, recipe: dict[str, Any], key: str):
    answer = client.post("/merges", json=recipe, headers={"Idempotency-Key": key})
    assert refusal(answer, 422, "invalid_request")["errors"][0]["param"] == "Idempotency-Key"


def test_requests_at_the_same_time_make_one_merge(
    client: TestClient, backend: Backend, recipe: dict[str, Any]
):
    barrier = threading.Barrier(6)

    def post(_: int) -> tuple[int, str | None]:
        barrier.wait()
        answer = client.post("/merges", json=recipe, headers=KEY)
        return answer.status_code, answer.json().get("id")

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(post, range(6)))
    statuses = [status for status, _ in answers]
    assert statuses.count(202) == 1
    assert set(statuses) <= {200, 202, 409}
    assert len({merge_id for _, merge_id in answers if merge_id}) == 1
    assert len(merges.page(backend.engine)) == 1


def test_callers_do_not_share_keys(client: TestClient, backend: Backend, recipe: dict[str, Any]):
    made = set()
    for name in ("one", "two"):
        secret = keys.create(backend.engine, name, ["write"])[1]
        headers = {**KEY, "Authorization": f"Bearer {secret}"}
        made.add(client.post("/merges", json=recipe, headers=headers).json()["id"])
    assert len(made) == 2


def test_a_retry_is_made_once(client: TestClient, backend: Backend, merge_id: str):
    end(backend.engine, take(backend.engine, merge_id), "failed", error={"code": "x"})
    answers = [client.post(f"/merges/{merge_id}/retry", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 200]
    assert answers[0].json()["id"] == answers[1].json()["id"] != merge_id
