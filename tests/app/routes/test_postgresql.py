"""The API over a real PostgreSQL, where one is installed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from app.services.backend import Backend
from app.storage import evaluations
from app.storage.leases import JobKind
from tests.app.routes.conftest import end, succeed, take
from tests.app.routes.test_evaluations import PERFECT, result, spec, store
from tests.app.routes.test_gate import finish
from tests.app.routes.test_wer_page import measured
from tests.app.storage.conftest import Cluster, cluster

__all__ = ["cluster", "spec"]


@pytest.fixture
def client(make_client: Callable[..., TestClient], cluster: Cluster) -> TestClient:
    return make_client(database_url=cluster.create(f"t{uuid4().hex}"))


def test_a_merge_lives_and_ends(
    client: TestClient, backend: Backend, recipe: dict[str, Any], spec: Any, models: Path
):
    recipe |= {"name": "olá 🌊", "metadata": {"ticket": "ü"}}
    merge_id = client.post("/merges", json=recipe).json()["id"]
    succeed(backend.engine, backend.store, merge_id)
    merge = client.get(f"/merges/{merge_id}").json()
    assert (merge["status"], merge["name"]) == ("succeeded", "olá 🌊")
    assert client.get("/merges", params={"name": "olá 🌊"}).json()["data"] == [merge]
    evaluation = client.post(f"/merges/{merge_id}/evaluations", json=spec).json()
    lease = take(backend.engine, evaluation["id"], JobKind.EVALUATION)
    store(backend, lease, "merge", 0, result(PERFECT))
    end(backend.engine, lease, "succeeded")
    assert client.get(f"/merges/{merge_id}/wer").json()["datasets"][0]["wer"] == 0.0
    kinds = [e["type"] for e in client.get(f"/merges/{merge_id}/events").json()["data"]]
    assert kinds == ["status", "status", "status", "end", *["evaluation"] * 3, "end"]
    assert client.get(f"/merges/{merge_id}/artifacts.tar").status_code == 200
    assert client.delete(f"/merges/{merge_id}").status_code == 204
    assert client.get("/metrics").status_code == 200


def test_pages_and_races(client: TestClient, recipe: dict[str, Any]):
    barrier = threading.Barrier(6)

    def post(_: int) -> int:
        barrier.wait()
        return int(
            client.post("/merges", json=recipe, headers={"Idempotency-Key": "k"}).status_code
        )

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(post, range(6)))
    assert statuses.count(202) == 1
    assert set(statuses) <= {200, 202, 409}
    client.post("/merges", json=recipe)
    first = client.get("/merges?page_size=1").json()
    second = client.get(f"/merges?page_size=1&page_token={first['next_page_token']}").json()
    assert first["data"][0]["id"] != second["data"][0]["id"]
    assert second["next_page_token"] is None
    cancelled = client.post(f"/merges/{second['data'][0]['id']}/cancel")
    assert cancelled.json()["status"] == "cancelled"


def test_an_evaluation_or_a_deletion_comes_first_but_neither_fails(
    client: TestClient, backend: Backend, recipe: dict[str, Any], spec: Any
):
    for _ in range(8):
        merge_id = client.post("/merges", json=recipe).json()["id"]
        succeed(backend.engine, backend.store, merge_id)
        barrier = threading.Barrier(2)

        def call(method: str, path: str, body: Any, barrier: Any = barrier) -> int:
            barrier.wait()
            return int(client.request(method, path, json=body).status_code)

        with ThreadPoolExecutor(2) as pool:
            asked = pool.submit(call, "POST", f"/merges/{merge_id}/evaluations", spec)
            deleted = pool.submit(call, "DELETE", f"/merges/{merge_id}", None)
        assert (asked.result(), deleted.result()) in {(202, 409), (404, 204)}


def test_a_deletion_waits_for_the_evaluation_that_is_being_written(
    client: TestClient,
    backend: Backend,
    recipe: dict[str, Any],
    spec: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    merge_id = client.post("/merges", json=recipe).json()["id"]
    succeed(backend.engine, backend.store, merge_id)
    create = evaluations.create

    def late(*arguments: Any) -> str:
        deleting.append(pool.submit(client.delete, f"/merges/{merge_id}"))
        time.sleep(0.5)
        return create(*arguments)

    deleting: list[Any] = []
    monkeypatch.setattr(evaluations, "create", late)
    with ThreadPoolExecutor(1) as pool:
        assert client.post(f"/merges/{merge_id}/evaluations", json=spec).status_code == 202
    assert deleting[0].result().status_code == 409


def test_a_page_and_a_verdict(
    client: TestClient, backend: Backend, recipe: dict[str, Any], spec: dict[str, Any]
):
    measured(client, backend, recipe, spec, 0.1)
    own = measured(client, backend, recipe, spec, 0.2)
    assert "task_arithmetic λ=0.1" in client.get(f"/merges/{own}/wer?format=html").text
    asked = spec | {"gate": {"max_wer": 0}}
    evaluation = client.post(f"/merges/{own}/evaluations", json=asked).json()
    finish(backend, own, evaluation, {"merge": result(PERFECT)})
    assert client.get(f"/merges/{own}").json()["evaluation"]["gate"]["passed"] is True
