from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from sqlalchemy import event

from app.services.backend import Backend
from app.storage import leases, merges
from tests.app.routes.conftest import write_checkpoint
from tests.app.sources.conftest import whisper_tensors

PROBLEM = "application/problem+json"


def refusal(answer: Any, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem document, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document: dict[str, Any] = answer.json()
    assert document["code"] == code
    assert document["type"] == f"urn:afluente:problem:{code}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    return document


def test_a_request_becomes_a_queued_merge(
    client: TestClient, backend: Backend, recipe: dict[str, Any]
):
    answer = client.post("/merges", json={**recipe, "name": "n", "metadata": {"ticket": "A-1"}})
    assert answer.status_code == 202
    merge = answer.json()
    assert answer.headers["location"] == merge["links"]["self"] == f"/merges/{merge['id']}"
    assert client.get(answer.headers["location"]).json() == merge
    assert merge["object"] == "merge"
    assert (merge["status"], merge["phase"], merge["attempt"]) == ("queued", None, 0)
    assert merge["parameters"] == {
        "scaling_coefficient": 0.4,
        "scaling_coefficient_last": None,
        "normalize": False,
    }
    assert merge["progress"] == {
        "done": 0, "total": None, "unit": None, "fraction": 0.0, "eta_seconds": None,
    }  # fmt: skip
    assert [source["name"] for source in merge["checkpoints"]] == ["one", "two"]
    assert merge["base"]["resolved"] == recipe["base"]
    assert merge["base"]["sha256"] is None
    assert merge["evaluation"]["status"] == "none"
    assert merge["metadata"] == {"ticket": "A-1"}
    assert merge["created_at"].endswith("Z")
    assert merge["error"] is None
    # Without a broker it waits for the sweeper.
    assert leases.waiting(backend.engine, unsent_seconds=60)


def test_yaml_and_json_requests_are_equivalent(client: TestClient, recipe: dict[str, Any]):
    headers = {"Idempotency-Key": "same"}
    first = client.post("/merges", json=recipe, headers=headers)
    second = client.post(
        "/merges",
        content=yaml.safe_dump(recipe),
        headers={**headers, "Content-Type": "application/yaml; charset=utf-8"},
    )
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["id"] == second.json()["id"]


def test_a_dry_run_shows_the_plan_and_records_nothing(
    client: TestClient, backend: Backend, recipe: dict[str, Any]
):
    rules = [{"match": "*.conv1.*", "method": "keep_base"}]
    headers = {"Idempotency-Key": "dry"}
    answer = client.post("/merges?dry_run=true", json={**recipe, "rules": rules}, headers=headers)
    assert answer.status_code == 200
    plan = answer.json()
    assert plan["object"] == "plan"
    steps = {step["name"]: step for step in plan["plan"]["tensors"]}
    assert steps["model.encoder.conv1.weight"]["method"] == "keep_base"
    totals = plan["plan"]["totals"]
    assert totals["tensors"] == len(steps) == len(whisper_tensors())
    for figure in ("flops", "bytes_read", "bytes_written", "peak_memory_bytes"):
        assert totals[figure] > 0
    limits = plan["plan"]["merged_at_once"]
    assert "AFLUENTE_THREADS" in limits["threads"]
    assert "AFLUENTE_MEMORY_BYTES" in limits["working_memory"]
    assert "half of the memory" in limits["working_memory"]
    assert merges.page(backend.engine) == []
    assert client.post("/merges", json=recipe, headers=headers).status_code == 202


def test_one_checkpoint_is_accepted_with_a_warning(client: TestClient, recipe: dict[str, Any]):
    recipe["checkpoints"] = recipe["checkpoints"][:1]
    merge = client.post("/merges", json=recipe).json()
    assert [warning["code"] for warning in merge["warnings"]] == ["single_checkpoint"]


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_an_unknown_method_gets_a_suggestion(
    client: TestClient, recipe: dict[str, Any], query: str
):
    answer = client.post(f"/merges{query}", json={**recipe, "method": "task_aritmetic"})
    document = refusal(answer, 422, "invalid_request")
    assert document["errors"][0]["param"] == "method"
    assert 'Did you mean "task_arithmetic"?' in document["detail"]


def test_a_misspelt_parameter_gets_a_suggestion(client: TestClient, recipe: dict[str, Any]):
    recipe["parameters"] = {"scaling_coeficient": 1.0}
    document = refusal(client.post("/merges", json=recipe), 422, "invalid_request")
    assert document["errors"] == [
        {"param": "parameters.scaling_coeficient", "message": document["errors"][0]["message"]}
    ]
    assert 'Did you mean "scaling_coefficient"?' in document["detail"]


def test_a_misspelt_field_gets_a_suggestion(client: TestClient, recipe: dict[str, Any]):
    recipe["checkpoint"] = recipe.pop("checkpoints")
    document = refusal(client.post("/merges", json=recipe), 422, "invalid_request")
    assert {error["param"] for error in document["errors"]} == {"checkpoint", "checkpoints"}
    assert 'Did you mean "checkpoints"?' in str(document["errors"])


def test_all_problems_are_reported_at_once(
    client: TestClient, recipe: dict[str, Any], models: Path
):
    recipe["base"] = f"file://{models}/nowhere"
    recipe["checkpoints"].append("file:///etc")
    recipe["evaluation"] = {
        "datasets": [{"name": "d", "uri": f"file://{models}/none.jsonl"}],
        "compare_with": ["merge://mrg_01KB0Y8W5RZ9J2M7N4C6T3VHQX"],
    }
    document = refusal(client.post("/merges", json=recipe), 422, "source_not_found")
    assert [error["param"] for error in document["errors"]] == [
        "base.uri",
        "checkpoints[2].uri",
        "evaluation.datasets[0].uri",
        "evaluation.compare_with[0]",
    ]
    assert "no such folder" in document["errors"][0]["message"]


def test_a_missing_folder_is_named(client: TestClient, recipe: dict[str, Any], models: Path):
    recipe["checkpoints"][1] = f"file://{models}/three"
    document = refusal(client.post("/merges", json=recipe), 422, "source_not_found")
    assert document["errors"][0]["param"] == "checkpoints[1].uri"
    assert f"file://{models}/three" in document["detail"]


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("file:///etc/passwd", "source_not_allowed"),
        ("file://{models}/../secret", "source_not_allowed"),
        ("file://{models}/%2e%2e/secret", "source_not_allowed"),
        ("file://{models}/link", "source_not_allowed"),
        ("ftp://host/x", "source_not_allowed"),
        ("https://example.com/x", "source_not_allowed"),
        ("merge://mrg_01KB0Y8W5RZ9J2M7N4C6T3VHQX", "source_not_found"),
        ("/plain/path", "source_not_allowed"),
    ],
)
def test_sources_out_of_bounds_are_refused(
    client: TestClient, recipe: dict[str, Any], models: Path, uri: str, code: str
):
    write_checkpoint(models.parent / "secret")
    (models / "link").symlink_to(models.parent / "secret")
    recipe["checkpoints"][0] = uri.replace("{models}", str(models))
    refusal(client.post("/merges", json=recipe), 422, code)


def test_another_architecture_is_refused(client: TestClient, recipe: dict[str, Any], models: Path):
    write_checkpoint(models / "bert", config={"model_type": "bert"})
    recipe["checkpoints"][0] = f"file://{models}/bert"
    document = refusal(client.post("/merges", json=recipe), 422, "incompatible_checkpoint")
    assert "checkpoints of two architectures cannot be merged" in document["detail"]


def test_a_truncated_file_is_refused_by_name(
    client: TestClient, recipe: dict[str, Any], models: Path
):
    weights = models / "two" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    document = refusal(client.post("/merges", json=recipe), 422, "invalid_checkpoint")
    assert "model.safetensors" in document["detail"]
    assert document["errors"][0]["param"] == "checkpoints[1].uri"


def test_another_shape_is_refused_by_tensor(
    client: TestClient, recipe: dict[str, Any], models: Path
):
    name = "model.decoder.layers.0.fc1.bias"
    tensors = whisper_tensors() | {name: ("F32", (3,))}
    write_checkpoint(models / "odd", tensors=tensors)
    recipe["checkpoints"][0] = f"file://{models}/odd"
    document = refusal(client.post("/merges", json=recipe), 422, "incompatible_checkpoint")
    assert f"{name} ([3] instead of [16])" in document["detail"]


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_body"),
        (b"", "application/json", 400, "malformed_body"),
        (b"\xff\xfe", "application/json", 400, "malformed_body"),
        (b"[" * 100_000, "application/json", 400, "malformed_body"),
        (b"[" * 40 + b"]" * 40, "application/json", 400, "malformed_body"),
        (b'{"seed": NaN}', "application/json", 400, "malformed_body"),
        (b'{"seed": 1e999}', "application/json", 400, "malformed_body"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "malformed_body"),
        (b'{"name": "\\u0000"}', "application/json", 400, "malformed_body"),
        (b'{"name": "\\ud800"}', "application/json", 400, "malformed_body"),
        (b'{"method": "soup", "method": "soup"}', "application/json", 400, "malformed_body"),
        (b"method: soup\nmethod: soup", "application/yaml", 400, "malformed_body"),
        (b"a: &x [1]\nb: *x", "application/yaml", 400, "malformed_body"),
        (b"a: !!python/object:os.system {}", "application/yaml", 400, "malformed_body"),
        (b"a: [", "application/yaml", 400, "malformed_body"),
        (b"1: 2", "application/yaml", 400, "malformed_body"),
        (b"[" * 5000, "application/yaml", 400, "malformed_body"),
        (b"null", "application/json", 422, "invalid_request"),
        (b"[]", "application/json", 422, "invalid_request"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "", 415, "unsupported_media_type"),
    ],
)
def test_an_invalid_body_is_refused(
    client: TestClient, body: bytes, media_type: str, status: int, code: str
):
    headers = {"Content-Type": media_type} if media_type else {}
    refusal(client.post("/merges", content=body, headers=headers), status, code)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(
    make_client: Callable[..., TestClient], announced: bool
):
    client = make_client(max_body_bytes=1000)
    parts = [b'{"name": "', b"x" * 2000, b'"}']
    headers = {"Content-Type": "application/json"}
    content: Any = b"".join(parts) if announced else iter(parts)
    document = refusal(
        client.post("/merges", content=content, headers=headers), 413, "body_too_large"
    )
    assert "1,000 bytes" in document["detail"]


def test_a_compressed_body_is_refused(client: TestClient):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refusal(client.post("/merges", content=b"{}", headers=headers), 415, "unsupported_media_type")


def test_more_checkpoints_than_allowed_are_refused(
    make_client: Callable[..., TestClient], recipe: dict[str, Any]
):
    client = make_client(max_checkpoints=1)
    document = refusal(client.post("/merges", json=recipe), 422, "invalid_request")
    assert "AFLUENTE_MAX_CHECKPOINTS" in document["detail"]


def test_a_manifest_with_faults_is_refused_by_line(
    client: TestClient, recipe: dict[str, Any], models: Path
):
    lines = [{"audio_filepath": "a.wav", "text": "olá"}, {"audio_filepath": "b.wav"}]
    (models / "set.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    recipe["evaluation"] = {"datasets": [{"name": "set", "uri": f"file://{models}/set.jsonl"}]}
    document = refusal(client.post("/merges", json=recipe), 422, "invalid_manifest")
    assert document["errors"] == [
        {
            "param": "evaluation.datasets[0].uri",
            "message": "set.jsonl, line 2: text missing; each line needs both",
        }
    ]


def test_an_evaluation_that_was_asked_for_is_queued_with_the_merge(
    client: TestClient, recipe: dict[str, Any], models: Path
):
    (models / "a.wav").write_bytes(b"RIFF\x24\0\0\0WAVE")
    (models / "set.jsonl").write_text(json.dumps({"audio_filepath": "a.wav", "text": "olá"}))
    recipe["evaluation"] = {"datasets": [{"name": "set", "uri": f"file://{models}/set.jsonl"}]}
    merge = client.post("/merges", json=recipe).json()
    assert merge["evaluation"]["status"] == "queued"
    client.post(merge["links"]["cancel"])
    assert client.get(merge["links"]["self"]).json()["evaluation"]["status"] == "cancelled"


@pytest.mark.parametrize("uri", ["https://[x/y", "https://]x/y", "https://[::1"])
def test_an_invalid_uri_is_refused(client: TestClient, recipe: dict[str, Any], uri: str):
    recipe["checkpoints"][0] = uri
    answer = client.post("/merges", json=recipe)
    document = refusal(answer, 422, answer.json()["code"])
    assert document["errors"][0]["param"] == "checkpoints[0].uri"


def test_a_misspelt_dry_run_queues_nothing(client: TestClient, recipe: dict[str, Any]):
    answer = client.post("/merges?dryrun=true", json=recipe)
    document = refusal(answer, 422, "invalid_request")
    assert document["errors"][0]["param"] == "dryrun"
    assert 'Did you mean "dry_run"?' in document["detail"]
    assert client.get("/merges").json()["data"] == []


def test_a_merge_is_accepted_although_its_message_cannot_be_recorded(
    make_client: Callable[..., TestClient], recipe: dict[str, Any], valkey_url: str
):
    client = make_client(broker_url=valkey_url)
    engine = client.app.state.backend.engine

    def fail(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "sent_at=" in statement:
            raise sqlite3.OperationalError("database is locked")

    event.listen(engine, "before_cursor_execute", fail)
    try:
        answer = client.post("/merges", json=recipe)
    finally:
        event.remove(engine, "before_cursor_execute", fail)
    assert answer.status_code == 202
