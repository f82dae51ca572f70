"""An empty, migrated database per test: SQLite, and a real PostgreSQL where one is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from app.storage import merges
from app.storage.database import connect, migrate, writing
from worker.processes.launch import die_with_parent

RECIPE = {"method": "soup", "parameters": {}, "rules": [], "seed": 0, "output": {}}
SOURCES = {"base": None, "checkpoints": []}


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class Cluster:
    """A throw-away PostgreSQL on a Unix socket, which ends with the process that started it.

    PostgreSQL refuses to run as root.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "-D", "data", "-A", "trust", "-U", "test", "--no-sync")
        options = ["listen_addresses=", "fsync=off", "max_connections=120"]
        command = [programs / "postgres", "-D", "data", "-k", self.folder]
        self._server = subprocess.Popen(
            [*command, *(word for option in options for word in ("-c", option))],
            cwd=self.folder,
            user=self._user,
            preexec_fn=die_with_parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()
        self.create("template", "template1")
        engine = connect(self.url("template"))
        migrate(engine)
        engine.dispose()

    def create(self, name: str, template: str = "template") -> str:
        command = f'CREATE DATABASE "{name}" TEMPLATE {template}'
        self._run("psql", "-h", str(self.folder), "-U", "test", "-d", "postgres", "-c", command)
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://test@/{name}?host={self.folder}"

    def close(self) -> None:
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        asked = [self._programs / "pg_isready", "-q", "-h", self.folder]
        deadline = time.monotonic() + 30
        while subprocess.run(asked, check=False).returncode:
            assert self._server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.folder,
            user=self._user,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed here")
    running = Cluster(programs)
    yield running
    running.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "empty.db"
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "test.db")
        url = f"sqlite:///{tmp_path / 'test.db'}"
    else:
        url = request.getfixturevalue("cluster").create(f"t{uuid4().hex}")
    connected = connect(url)
    yield connected
    connected.dispose()


@pytest.fixture
def merge_id(engine: Engine) -> str:
    return make_merge(engine)


def make_merge(engine: Engine, name: str | None = None) -> str:
    with writing(engine) as connection:
        return merges.create(
            connection, name=name, request={}, recipe=RECIPE, sources=SOURCES, warnings=()
        )
