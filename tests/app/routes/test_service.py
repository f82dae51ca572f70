from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from app.contract.catalogue import CATALOGUE
from app.contract.identifiers import new_id
from app.contract.settings import Settings
from app.main import create_app
from app.services.backend import Backend
from app.storage import fleet
from tests.app.routes.test_create_merge import PROBLEM, refusal

ROOT = Path(__file__).resolve().parents[3]


def test_importing_the_api_loads_nothing_that_only_workers_need():
    heavy = (
        "torch",
        "transformers",
        "safetensors",
        "worker",
        "numpy",
        "alembic",
        "celery",
        "rapidfuzz",
    )
    code = f"import sys, app.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_server_finds_the_application_by_name(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "AFLUENTE_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                answer = httpx2.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx2.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert answer.json() == {"status": "ok"}
    finally:
        server.terminate()
        assert server.wait(20) in {0, -15}


def test_readiness_names_what_is_missing(client: TestClient):
    document = refusal(client.get("/readyz"), 503, "not_ready")
    checks = document["checks"]
    assert {name: check["ok"] for name, check in checks.items()} == {
        "database": True, "broker": False, "artifact_store": True, "worker": False,
    }  # fmt: skip
    assert all(check["detail"] for check in checks.values())


def test_readiness_when_all_checks_pass(
    make_client: Callable[..., TestClient], valkey_url: str, tmp_path: Path
):
    client = make_client(broker_url=valkey_url)
    backend: Backend = client.app.state.backend
    fleet.heartbeat(backend.engine, "wrk_1", "host")
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ready"
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    other = make_client(broker_url="redis://127.0.0.1:1/0", artifact_dir=blocked / "x")
    checks = other.get("/readyz").json()["checks"]
    assert [checks[name]["ok"] for name in ("broker", "artifact_store")] == [False, False]


def test_metrics_count_merges_and_requests(client: TestClient, merge_id: str):
    client.get(f"/merges/{merge_id}")
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert 'afluente_merges{status="queued"} 1.0' in text
    assert 'route="/merges/{merge_id}",status="200"' in text
    assert merge_id not in text
    assert "/nowhere" not in text


def test_clients_cannot_create_metric_labels(make_client: Callable[..., TestClient]):
    client = make_client(require_api_key=True)

    def series() -> int:
        text = client.app.state.metrics.expose(client.app.state.backend)
        return len(text.splitlines())

    def strange(number: int) -> None:
        client.request(f"M{number}{'A' * 100}", "/merges")
        client.request("get", f"/{number}")
        client.get(f"/merges/{number}?a={number}")
        client.post(f"/docs-assets/{number}")
        client.get("/merges", headers={"Host": f"h{number}"})

    strange(0)
    before = series()
    for number in range(1, 30):
        strange(number)
    assert series() == before


def test_methods_come_from_the_catalogue(client: TestClient):
    data = client.get("/methods").json()["data"]
    assert [method["name"] for method in data] == list(CATALOGUE)
    for method in data:
        assert client.get(f"/methods/{method['name']}").json() == method
    document = refusal(client.get("/methods/boosted_tsvm"), 404, "not_found")
    assert 'Did you mean "boosted_tsv_m"?' in document["detail"]


def test_the_version_is_returned(client: TestClient):
    assert set(client.get("/version").json()) == {"name", "version", "python"}


@pytest.mark.parametrize("path", ["/", "/merge", "/merges/", "/healthz/x", "/%00", "/merges/a/b/c"])
def test_an_unknown_path_is_a_problem_document(client: TestClient, path: str):
    refusal(client.get(path), 404, "not_found")


def test_a_405_names_the_allowed_methods(client: TestClient):
    answer = client.put("/merges")
    refusal(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_an_unreachable_database_is_a_503(client: TestClient, backend: Backend):
    import sqlite3

    def fail(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error: secret path")

    event.listen(backend.engine, "before_cursor_execute", fail)
    try:
        answer = client.get("/merges")
    finally:
        event.remove(backend.engine, "before_cursor_execute", fail)
    assert answer.headers["content-type"] == PROBLEM
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_an_internal_error_shows_no_details(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
):
    from app.routes import merges

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(merges.merges, "list_page", fail)
    app = create_app(make_settings())
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        document = refusal(client.get("/merges"), 500, "internal_error")
    assert "secret" not in str(document)


def _operations(client: TestClient) -> list[tuple[str, str, dict[str, Any]]]:
    paths = client.get("/openapi.json").json()["paths"]
    return [(method, path, o) for path, ops in paths.items() for method, o in ops.items()]


def test_every_operation_is_described(client: TestClient):
    document = client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"
    operations = _operations(client)
    assert len({o["operationId"] for _, _, o in operations}) == len(operations)
    for method, path, operation in operations:
        assert operation["summary"], path
        assert operation["description"], path
        assert operation["tags"], path
        if path in {"/healthz", "/readyz", "/version"}:
            assert "security" not in operation
            continue
        assert operation["security"] == [{"bearerAuth": []}]
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == [PROBLEM], (method, path, status)
    for path in ("/merges", "/merges/{merge_id}/evaluations"):
        body = document["paths"][path]["post"]["requestBody"]
        assert set(body["content"]) == {"application/json", "application/yaml"}
        assert all("example" in content for content in body["content"].values())


def test_the_schemas_refer_to_nothing_that_is_missing(client: TestClient):
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    references: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                references.add(node["$ref"].rpartition("/")[2])
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(document)
    assert references <= set(schemas)
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)


def test_every_documented_call_on_what_is_not_there_is_not_found(client: TestClient):
    for method, path, operation in _operations(client):
        if "{" not in path:
            continue
        query = {
            one["name"]: one["schema"]["examples"][0]
            for one in operation.get("parameters", ())
            if one["in"] == "query" and one["required"]
        }
        concrete = path.replace("{merge_id}", new_id("mrg")).replace("{name}", "x")
        concrete = concrete.replace("{evaluation_id}", new_id("evl"))
        concrete = concrete.replace("{study_id}", new_id("std"))
        bodies = {"evaluations": {"datasets": []}, "extend": {"trials": 9}}
        given = bodies.get(path.rpartition("/")[2])
        body = {} if given is None or method != "post" else {"json": given}
        answer = client.request(method.upper(), concrete, params=query, **body)
        assert answer.status_code == 404, (method, path)
        if method != "head":
            refusal(answer, 404, "not_found")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/docs-assets/x.js", "/healthz"])
def test_every_405_names_the_allowed_methods(client: TestClient, path: str):
    answer = client.put(path)
    document = refusal(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]
    assert document["detail"].endswith(f"use {answer.headers['allow']}.")


def test_readiness_shows_no_path_to_those_without_a_key(
    make_client: Callable[..., TestClient], tmp_path: Path
):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    answer = make_client(artifact_dir=blocked / "x").get("/readyz")
    assert answer.json()["checks"]["artifact_store"]["ok"] is False
    assert str(tmp_path) not in answer.text


def test_unknown_query_parameters_are_refused_everywhere(client: TestClient, finished: str):
    checked = set()
    for method, path, operation in _operations(client):
        if "security" not in operation:
            continue
        concrete = path.replace("{merge_id}", finished).replace("{name}", "config.json")
        answer = client.request(method.upper(), concrete, params={"page_sise": "1"})
        assert answer.status_code == 422, (method, path)
        if method != "head":
            document = refusal(answer, 422, "invalid_request")
            assert document["errors"][0]["param"] == "page_sise"
            checked.add('Did you mean "page_size"?' in document["detail"])
    assert checked == {True, False}
    assert client.get(f"/merges/{finished}").status_code == 200


def test_what_a_client_writes_stays_on_one_short_line_of_the_log(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
):
    client = make_client()
    (client.app.state.backend.store.root).parent.joinpath("afluente.db").unlink()
    client.app.state.backend.engine.dispose()
    path = "/merges/mrg_" + "0" * 26 + "/artifacts/%0aERROR%20forged%1b" + "a" * 30_000
    assert client.get(path).status_code == 503
    [line] = [r.getMessage() for r in caplog.records if r.name == "app.routes.problems"]
    assert "\n" not in line.partition(":")[0]
    assert "\x1b" not in line
    assert len(line.partition(":")[0]) < 300
    document = client.request("A" * 60_000, "/merges").json()
    assert (document["status"], len(document["detail"]) < 200) == (405, True)
