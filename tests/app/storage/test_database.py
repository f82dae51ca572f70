from __future__ import annotations

import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.contract.errors import InvalidRequestError, NotReadyError
from app.storage.database import check, clock, connect, migrate, reading, reason, writing
from app.storage.tables import metadata, workers
from tests.app.storage.conftest import Cluster


def test_migrations_and_tables_agree(engine: Engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_migrating_twice_changes_nothing(engine: Engine):
    migrate(engine)
    migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_several_processes_may_migrate_at_once(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'new' / 'x.db'}"
    engines = [connect(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(_migrate_in_turn, engines))
    with reading(engines[0]) as connection:
        assert connection.execute(select(workers)).all() == []
    for engine in engines:
        engine.dispose()


def _migrate_in_turn(engine: Engine) -> None:
    migrate(engine)


def test_the_clock_is_the_time_of_day_and_never_stands_still(engine: Engine):
    first = clock(engine)
    assert abs(first - time.time()) < 5
    time.sleep(0.02)
    assert clock(engine) > first


def test_concurrent_writers_wait_for_each_other(engine: Engine):
    """None fails with "database is locked", and nothing is lost."""

    def add(number: int) -> None:
        with writing(engine) as connection:
            connection.execute(select(workers)).all()
            values = {"id": f"wrk_{number}", "host": "h", "started_at": 0.0, "seen_at": 0.0}
            connection.execute(insert(workers).values(values))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    with reading(engine) as connection:
        assert len(connection.execute(select(workers)).all()) == 40


@pytest.mark.parametrize("name", ["a?b#c.db", "runs%41.db", "é 'x\".db", "a&mode=memory.db"])
def test_a_file_is_where_its_path_says_and_its_owners_alone(tmp_path: Path, name: str):
    file = tmp_path / "new?x" / name
    engine = connect(file)
    migrate(engine)
    check(engine)
    assert sorted(path.name for path in file.parent.iterdir()) == [
        name, f"{name}-shm", f"{name}-wal",
    ]  # fmt: skip
    assert all(path.stat().st_mode & 0o077 == 0 for path in (file.parent, *file.parent.iterdir()))
    engine.dispose()


def test_a_folder_and_a_file_that_are_there_keep_their_rights(tmp_path: Path):
    file = tmp_path / "x.db"
    file.touch()
    file.chmod(0o660)
    tmp_path.chmod(0o750)
    engine = connect(file)
    migrate(engine)
    engine.dispose()
    assert [path.stat().st_mode & 0o777 for path in (tmp_path, file)] == [0o750, 0o660]


def why(engine: Engine, statement: str) -> str | None:
    with pytest.raises(SQLAlchemyError) as raised, writing(engine) as connection:
        connection.execute(text(statement))
    return reason(raised.value)


def test_sqlite_errors_are_explained(tmp_path: Path):
    file = tmp_path / "x.db"
    engine = connect(file)
    migrate(engine)
    add = "INSERT INTO workers VALUES ('w', 'h', 0, 0, 0)"
    with writing(engine) as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    large = "INSERT INTO transcripts VALUES ('k', zeroblob(99999), 0, 0, NULL)"
    assert why(engine, large) == "The disk of the database is full."
    assert "lacks a table" in str(why(engine, "SELECT * FROM absent"))
    assert why(engine, "SELECT FROM") is not None
    engine.dispose()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    impatient = connect(f"sqlite:///{file}?timeout=0")
    assert "busy" in str(why(impatient, add))
    impatient.dispose()
    other.close()
    read_only = connect(f"sqlite:///file:{file}?mode=ro&uri=true")
    assert "read-only" in str(why(read_only, add))
    read_only.dispose()
    file.write_bytes(b"no database" * 1000)
    for companion in (f"{file}-wal", f"{file}-shm"):
        if os.path.exists(companion):  # noqa: PTH110
            os.unlink(companion)  # noqa: PTH108
    ruined = connect(file)
    with pytest.raises(NotReadyError, match="damaged"):
        migrate(ruined)
    ruined.dispose()


def test_postgresql_errors_are_explained(cluster: Cluster):
    url = cluster.create("reasons")
    engine = connect(url)
    check(engine)
    assert "lacks a table" in str(why(engine, "SELECT * FROM absent"))
    assert "read-only" in str(why(engine, "SET TRANSACTION READ ONLY; DELETE FROM workers"))
    assert "busy" in str(why(engine, "SET LOCAL statement_timeout = 10; SELECT pg_sleep(5)"))
    assert why(engine, "SELECT 1 / 0") is None
    assert "stopping" in str(why(engine, "SELECT pg_terminate_backend(pg_backend_pid())"))
    with writing(engine) as connection:
        connection.exec_driver_sql("ALTER DATABASE reasons SET default_transaction_read_only = on")
    engine.dispose()
    with pytest.raises(NotReadyError, match="read-only"):
        check(engine)
    engine.dispose()
    for wrong, match in (
        (url.replace("reasons", "nowhere"), "does not exist"),
        (url.replace("test@", "stranger@"), "refuses"),
        ("postgresql://test:hidden@127.0.0.1:1/x", "cannot be reached"),
    ):
        engine = connect(wrong)
        with pytest.raises(NotReadyError, match=match):
            migrate(engine)
        engine.dispose()


def test_a_database_that_cannot_hold_every_text_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    engine = connect(cluster.url("template1"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for encoding in ("SQL_ASCII", "LATIN1"):
            options = f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
            connection.exec_driver_sql(f"CREATE DATABASE {encoding} {options}")
    engine.dispose()
    for encoding in ("SQL_ASCII", "LATIN1"):
        narrow = connect(cluster.url(encoding.lower()))
        with pytest.raises(NotReadyError, match=f"{encoding}.*ENCODING 'UTF8'"):
            migrate(narrow)
        narrow.dispose()
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    engine = connect(cluster.create("encoded"))
    with reading(engine) as connection:
        assert connection.execute(text("SELECT 'olá 🌊'")).scalar() == "olá 🌊"
    engine.dispose()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_database_that_processes_cannot_share_is_refused(url: str):
    with pytest.raises(InvalidRequestError, match="SQLite needs a file"):
        connect(url)
