"""Nothing in the working directory is imported instead of the service's own code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx2
import pytest

from tests.e2e.stack import afluente, running

OWN = ("app", "worker", "cli", "celeryconfig", "sitecustomize", "usercustomize", "tasks")
# What uvicorn itself imports, or looks for, before it imports the application.
UVICORNS = {"uvicorn", "click", "h11", "httptools", "uvloop", "websockets", "wsproto", "dotenv"}
DATA = "runs?2026#%41 'é\"\\ %(here)s [b]*"
# Variables that Celery reads, of another application on this machine.
FOREIGN = {
    "CELERY_BROKER_URL": "amqp://elsewhere//", "CELERY_BROKER_READ_URL": "amqp://elsewhere//",
    "CELERY_BROKER_WRITE_URL": "amqp://elsewhere//", "CELERY_RESULT_BACKEND": "nothing://",
    "CELERY_LOADER": "celeryconfig:Loader", "CELERY_CONFIG_MODULE": "celeryconfig",
    "CELERY_CUSTOM_WORKER_POOL": "tasks:Pool", "CELERY_WORKER_REVOKES_MAX": "many",
    "CELERY_TRACE_APP": "1", "C_STRICT_APP": "1", "C_BENCH": "1", "REMAP_SIGTERM": "SIGNAL",
    "BROKER_URL": "amqp://elsewhere//", "LOADER": "tasks", "CONFIG_MODULE": "celeryconfig",
    "APP": "tasks", "WORKDIR": "/nowhere", "FORKED_BY_MULTIPROCESSING": "1", "MP_LOG": "1",
    "DJANGO_SETTINGS_MODULE": "tasks", "PICKLE_PROTOCOL": "no", "WEB_CONCURRENCY": "four",
}  # fmt: skip


def strangers(folder: Path, names: Iterable[str]) -> Path:
    """Fill a folder with modules that note that they were imported, and fail; return the note."""
    folder.mkdir()
    note = folder / "imported.txt"
    for name in names:
        text = f"open({str(note)!r}, 'a').write({name + ' '!r})\nraise SystemExit({name!r})\n"
        if name in {"app", "worker", "cli"}:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(text)
        else:
            (folder / f"{name}.py").write_text(text)
    return note


def test_a_merge_works_in_a_folder_with_conflicting_modules(heavy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    installed = [name for name in packages_distributions() if name.isidentifier()]
    note = strangers(folder, {*OWN, *installed, *sys.stdlib_module_names})
    recipe = {
        "checkpoints": [(heavy / name).as_uri() for name in ("base", "expert-1")],
        "method": "soup",
    }
    roots = {"AFLUENTE_FILE_ROOTS": str(heavy)}
    data = tmp_path / DATA
    with running(data, cwd=folder, **FOREIGN, **roots) as stack:
        stack.finish(stack.post(recipe)["id"])
        kept = {path.name for path in data.iterdir()}
    assert not note.exists(), note.read_text()
    # The folder's name is no part of a URL, a configuration or a pattern.
    assert {"afluente.db", "artifacts", "valkey", "up.lock"} <= kept
    assert (data / "valkey" / "appendonlydir").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"project", DATA, f"{DATA}.log"}
    assert data.stat().st_mode & 0o077 == 0
    assert (data / "afluente.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", [":/nowhere", ".", "{folder}"])
def test_a_command_imports_nothing_from_there_by_pythonpath(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "project"
    note = strangers(folder, ["numpy", "torch", "typer", "pydantic", "sqlalchemy"])
    here = Path.cwd()
    try:
        os.chdir(folder)
        done = afluente("keys", "list", PYTHONPATH=path.format(folder=folder))
    finally:
        os.chdir(here)
    assert done.returncode == 0, done.stderr
    assert not note.exists(), note.read_text()


def test_uvicorn_imports_nothing_else_from_there(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    installed = {name for name in packages_distributions() if name.isidentifier()}
    note = strangers(folder, {*installed, "worker", "cli"} - UVICORNS - {"app", "yaml"})
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "uvicorn", "app.main:app", "--port", str(port)],
        cwd=folder,
        env={**os.environ, "AFLUENTE_DATA_DIR": str(tmp_path / "data")},
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = httpx2.get(f"{url}/methods")
                break
            except httpx2.TransportError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert answer.status_code == 200
        plan = {"checkpoints": ["/nowhere"], "method": "soup"}
        refused = httpx2.post(f"{url}/merges", params={"dry_run": 1}, json=plan)
        assert refused.status_code == 422
    finally:
        server.terminate()
        server.wait(20)
    assert not note.exists(), note.read_text()
