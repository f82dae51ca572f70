"""A merge that a request refers to cannot be deleted during the request."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from app.services import evaluations as evaluation_service
from app.services import merges as merge_service
from app.services.backend import Backend
from app.storage import evaluations, merges
from tests.app.routes.conftest import succeed
from tests.app.routes.test_create_merge import refusal
from tests.app.routes.test_evaluations import spec
from tests.app.sources.conftest import checkpoint_files
from tests.app.storage.conftest import Cluster, cluster

__all__ = ["cluster", "spec"]


@pytest.fixture(params=["sqlite", "postgresql"])
def client(request: pytest.FixtureRequest, make_client: Callable[..., TestClient]) -> TestClient:
    if request.param == "sqlite":
        return make_client()
    running: Cluster = request.getfixturevalue("cluster")
    return make_client(database_url=running.create(f"t{uuid4().hex}"))


@pytest.fixture
def named(
    client: TestClient, backend: Backend, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> str:
    """A merge that has succeeded and can be merged again."""
    monkeypatch.setattr("tests.app.routes.conftest.FILES", checkpoint_files(seed=7))
    merge_id = str(client.post("/merges", json=recipe).json()["id"])
    succeed(backend.engine, backend.store, merge_id)
    return merge_id


Ask = Callable[[], Any]


@pytest.fixture(params=["a merge of it", "a comparison with it", "a merge to compare with it"])
def ask(
    request: pytest.FixtureRequest,
    client: TestClient,
    backend: Backend,
    recipe: dict[str, Any],
    spec: dict[str, Any],
    named: str,
) -> Ask:
    """A request that names the merge, in one way or another."""
    uri = f"merge://{named}"
    compared = spec | {"compare_with": [uri]}
    if request.param == "a merge of it":
        body = recipe | {"checkpoints": [uri, *recipe["checkpoints"]]}
        return lambda: client.post("/merges", json=body)
    if request.param == "a merge to compare with it":
        return lambda: client.post("/merges", json=recipe | {"evaluation": compared})
    other = str(client.post("/merges", json=recipe).json()["id"])
    succeed(backend.engine, backend.store, other)
    return lambda: client.post(f"/merges/{other}/evaluations", json=compared)


def test_a_merge_deleted_during_a_request_is_refused(
    client: TestClient, named: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    def then_delete(check: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **options: Any) -> Any:
            found = check(*arguments, **options)
            assert client.delete(f"/merges/{named}").status_code == 204
            return found

        return checked

    for service, name in (
        (merge_service, "check_sources"),
        (evaluation_service, "check_evaluation"),
    ):
        monkeypatch.setattr(service, name, then_delete(getattr(service, name)))
    document = refusal(ask(), 422, "source_not_found")
    assert f"The merge {named}" in document["detail"]


def test_a_merge_named_by_an_open_request_cannot_be_deleted(
    client: TestClient, named: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    deleting: list[Any] = []

    def late(create: Callable[..., Any]) -> Callable[..., Any]:
        def created(*arguments: Any, **options: Any) -> Any:
            deleting.append(pool.submit(client.delete, f"/merges/{named}"))
            time.sleep(0.5)
            return create(*arguments, **options)

        return created

    for storage in (merges, evaluations):
        monkeypatch.setattr(storage, "create", late(storage.create))
    with ThreadPoolExecutor(1) as pool:
        assert ask().status_code == 202
    assert deleting[0].result().status_code == 409
