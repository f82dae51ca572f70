"""The API and a worker's transactions through a real pgbouncer that pools by transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from app.contract.identifiers import new_id
from app.services.backend import Backend
from app.storage import fleet
from app.storage.database import connect, migrate
from tests.app.routes.conftest import succeed
from tests.app.storage.bouncer import pgbouncer
from tests.app.storage.conftest import Cluster, cluster

__all__ = ["cluster"]


@pytest.fixture(scope="module")
def through(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Return what makes a database, and the URL that leads to it through pgbouncer."""
    with pgbouncer(cluster) as options:

        def make(template: str = "template") -> str:
            name = f"t{uuid4().hex}"
            cluster.create(name, template)
            return f"postgresql://test@/{name}?{options}"

        yield make


@pytest.fixture
def client(make_client: Callable[..., TestClient], through: Callable[..., str]) -> TestClient:
    return make_client(database_url=through())


def test_the_schema_is_made_through_a_pooler_by_many_at_once(through: Callable[..., str]):
    url = through("template1")

    def upgrade(_: int) -> None:
        engine = connect(url)
        migrate(engine)
        engine.dispose()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade, range(4)))


def test_sessions_that_share_connections_never_meet(
    client: TestClient, backend: Backend, recipe: dict[str, Any]
):
    """Statements that are prepared by themselves after five uses would collide."""

    def live(number: int) -> list[int]:
        key = {"Idempotency-Key": f"k{number % 4}"}
        statuses = []
        for turn in range(8):
            worker = new_id("wrk")
            fleet.heartbeat(backend.engine, worker, "host")
            made = client.post("/merges", json=recipe | {"name": f"{number}.{turn}"})
            merge_id = made.json()["id"]
            statuses.append(made.status_code)
            if turn % 2:
                succeed(backend.engine, backend.store, merge_id)
            else:
                statuses.append(client.post(f"/merges/{merge_id}/cancel").status_code)
            for path in ("/merges", f"/merges/{merge_id}", f"/merges/{merge_id}/events"):
                statuses.append(client.get(path).status_code)
            fleet.Election(backend.engine, "sweeper", worker, 1).stand()
            fleet.dismiss(backend.engine, worker)
        statuses.append(client.post("/merges", json=recipe, headers=key).status_code)
        return statuses

    with ThreadPoolExecutor(8) as pool:
        statuses = {status for found in pool.map(live, range(8)) for status in found}
    assert statuses <= {200, 202, 409}
    assert client.get("/metrics").text.count('status="succeeded"} 32.0') == 1
