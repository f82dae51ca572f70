from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.contract.identifiers import new_id
from app.services.backend import Backend
from app.storage import leases, merges
from app.storage.database import writing
from app.storage.leases import JobKind
from tests.app.routes.conftest import end, succeed, take
from tests.app.routes.test_create_merge import refusal

ERROR = {"code": "non_finite_input", "message": "m", "param": None, "retryable": False}


def test_pages_hold_every_merge_once_whatever_is_added(client: TestClient, recipe: dict[str, Any]):
    made = [client.post("/merges", json=recipe).json()["id"] for _ in range(5)]
    seen, token = [], None
    while True:
        query = {"page_size": 2} | ({"page_token": token} if token else {})
        page = client.get("/merges", params=query).json()
        seen += [merge["id"] for merge in page["data"]]
        client.post("/merges", json=recipe)
        token = page["next_page_token"]
        if token is None:
            break
    assert sorted(seen) == sorted(made)
    times = [client.get(f"/merges/{merge_id}").json()["created_at"] for merge_id in seen]
    assert times == sorted(times, reverse=True)


def test_filters_narrow_the_list(client: TestClient, recipe: dict[str, Any]):
    wanted = client.post("/merges", json={**recipe, "name": "wanted"}).json()["id"]
    other = client.post("/merges", json=recipe).json()["id"]
    client.post(f"/merges/{other}/cancel")

    def ids(query: str) -> list[str]:
        return [merge["id"] for merge in client.get(f"/merges?{query}").json()["data"]]

    assert ids("name=wanted") == [wanted]
    assert ids("status=cancelled") == [other]
    assert set(ids("method=task_arithmetic")) == {wanted, other}
    assert ids("method=soup") == []
    assert ids("status=queued&name=other") == []


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0",
        "page_size=101",
        "page_size=x",
        "status=done",
        "page_token=abc",
        "page_token=",
        "page_token=WzEsMl0",
        "page_token=W05hTiwieCJd",
        "page_token=WzEuMCwiXHUwMDAwIl0",
        "pagesize=3",
        "name=%00",
    ],
)
def test_an_invalid_query_is_refused_by_parameter(client: TestClient, query: str):
    document = refusal(client.get(f"/merges?{query}"), 422, "invalid_request")
    assert document["errors"][0]["param"] == query.split("=")[0]


def test_a_running_merge_says_how_long_it_will_take(
    client: TestClient, backend: Backend, merge_id: str
):
    lease = take(backend.engine, merge_id)
    merges.set_phase(backend.engine, lease, "merging", unit="tensors", total=10)
    assert client.get(f"/merges/{merge_id}").json()["progress"]["eta_seconds"] is None
    merges.set_progress(backend.engine, lease, 4, 10, "tensors")
    merge = client.get(f"/merges/{merge_id}").json()
    assert (merge["status"], merge["phase"], merge["attempt"]) == ("running", "merging", 1)
    progress = merge["progress"]
    assert (progress["done"], progress["total"], progress["fraction"]) == (4, 10, 0.4)
    assert 0 <= progress["eta_seconds"] < 60
    assert merge["started_at"] >= merge["created_at"]


def test_cancelling_may_be_repeated(client: TestClient, backend: Backend, merge_id: str):
    url = f"/merges/{merge_id}/cancel"
    answers = [client.post(url) for _ in range(2)]
    assert [(a.status_code, a.json()["status"]) for a in answers] == [(202, "cancelled")] * 2


def test_a_running_merge_is_told_to_cancel(client: TestClient, backend: Backend, merge_id: str):
    lease = take(backend.engine, merge_id)
    assert client.post(f"/merges/{merge_id}/cancel").json()["status"] == "cancelling"
    assert leases.status_of(backend.engine, lease) == "cancelling"


def test_a_merge_that_ended_otherwise_cannot_be_cancelled(client: TestClient, finished: str):
    document = refusal(client.post(f"/merges/{finished}/cancel"), 409, "conflict")
    assert "succeeded" in document["detail"]


def test_a_failed_merge_says_why_and_can_be_retried(
    client: TestClient, backend: Backend, merge_id: str
):
    end(backend.engine, take(backend.engine, merge_id), "failed", error=ERROR)
    failed = client.get(f"/merges/{merge_id}").json()
    assert failed["error"] == ERROR
    answer = client.post(f"/merges/{merge_id}/retry")
    assert answer.status_code == 202
    again = answer.json()
    assert again["continues"] == merge_id
    assert again["status"] == "queued"
    same = ("method", "parameters", "base", "checkpoints", "seed", "output", "name")
    assert {name: again[name] for name in same} == {name: failed[name] for name in same}


def test_only_a_failed_merge_can_be_retried(client: TestClient, finished: str):
    refusal(client.post(f"/merges/{finished}/retry"), 409, "conflict")


def test_a_retry_whose_source_is_gone_is_refused(
    client: TestClient, backend: Backend, merge_id: str, models: Path
):
    end(backend.engine, take(backend.engine, merge_id), "failed", error=ERROR)
    (models / "one" / "config.json").unlink()
    refusal(client.post(f"/merges/{merge_id}/retry"), 422, "invalid_checkpoint")


def test_deleting_removes_record_and_files(client: TestClient, backend: Backend, finished: str):
    assert backend.store.inventory()
    assert client.delete(f"/merges/{finished}").status_code == 204
    refusal(client.get(f"/merges/{finished}"), 404, "not_found")
    refusal(client.delete(f"/merges/{finished}"), 404, "not_found")
    assert not [path for path in backend.store.inventory() if finished in path.name]


def test_a_merge_at_work_cannot_be_deleted(client: TestClient, backend: Backend, recipe: Any):
    merge_id = client.post("/merges", json=recipe).json()["id"]
    refusal(client.delete(f"/merges/{merge_id}"), 409, "conflict")
    succeed(backend.engine, backend.store, merge_id, spec={"datasets": []})
    refusal(client.delete(f"/merges/{merge_id}"), 409, "conflict")
    [evaluation] = client.get(f"/merges/{merge_id}/evaluations").json()["data"]
    end(
        backend.engine, take(backend.engine, evaluation["id"], JobKind.EVALUATION), "failed",
        error=ERROR,
    )  # fmt: skip
    assert client.get(f"/merges/{merge_id}").json()["evaluation"]["error"] == ERROR
    assert client.delete(f"/merges/{merge_id}").status_code == 204


def test_an_earlier_result_can_be_a_source(
    client: TestClient, backend: Backend, finished: str, recipe: dict[str, Any], models: Path
):
    row = merges.get(backend.engine, finished)
    assert row is not None
    folder = backend.store.published_folder(row["artifact_folder"])
    for path in (models / "one").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    recipe["checkpoints"][0] = f"merge://{finished}"
    merge = client.post("/merges", json=recipe).json()
    assert merge["checkpoints"][0]["resolved"] == f"merge://{finished}"


PATHS = (
    ("get", "/merges/{id}"),
    ("post", "/merges/{id}/cancel"),
    ("post", "/merges/{id}/retry"),
    ("delete", "/merges/{id}"),
)


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("merge_id", ["x", "mrg_", "%00", "..%2f..", "mrg_" + "é" * 26, "new"])
def test_unknown_merges_are_not_found(client: TestClient, method: str, path: str, merge_id: str):
    known = new_id("mrg") if merge_id == "new" else merge_id
    answer = getattr(client, method)(path.replace("{id}", known))
    assert answer.status_code in {404, 405}
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("reader", ["merge", "evaluation", "experts"])
def test_a_merge_that_another_reads_cannot_be_deleted(
    client: TestClient, backend: Backend, finished: str, recipe: dict[str, Any], reader: str
):
    uri = f"merge://{finished}"
    source = {"uri": uri, "name": "x", "resolved": uri, "sha256": None, "weight": 1.0}
    with writing(backend.engine) as connection:
        other = merges.create(
            connection, name=None, request={}, recipe=recipe,
            sources={"base": None, "checkpoints": [] if reader == "evaluation" else [source]},
        )  # fmt: skip
    if reader != "merge":
        spec = {"datasets": [], "compare_with": [uri] if reader == "evaluation" else []}
        succeed(backend.engine, backend.store, other, spec=spec)
    document = refusal(client.delete(f"/merges/{finished}"), 409, "conflict")
    assert uri in document["detail"]
    if reader == "merge":
        end(backend.engine, take(backend.engine, other), "failed", error=ERROR)
    else:
        [evaluation] = client.get(f"/merges/{other}/evaluations").json()["data"]
        lease = take(backend.engine, evaluation["id"], JobKind.EVALUATION)
        end(backend.engine, lease, "failed", error=ERROR)
    assert client.delete(f"/merges/{finished}").status_code == 204
