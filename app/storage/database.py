"""The database: connections, transactions, its clock, its migrations."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Float

_MIGRATIONS = Path(__file__).with_name("migrations")
_BUSY_SECONDS = 10.0
# Of the connections of an engine, writers have no more than these: however long they wait for each
# other, readers find one.
_MOST_WRITERS = 8
_CONNECTIONS = 20
# How many values one IN (...) may have: well under what either database takes.
MOST_PARAMETERS = 500

# What is raised where it does not answer: it is away, locked, or starting up.
AWAY = (InterfaceError, OperationalError)

# A server that vanished is noticed in half a minute, not in TCP's quarter of an hour.
_PATIENCE = {"connect_timeout": 10, "tcp_user_timeout": 30_000}

# Its notes on every start are not for the operator.
logging.getLogger("alembic").setLevel(logging.WARNING)


class now(FunctionElement[float]):  # noqa: N801 - reads as SQL does
    """The database's own time in seconds since 1970, the only clock that leases go by."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def connect(url: str) -> Engine:
    """Return an engine for a SQLite or PostgreSQL URL; creates SQLite's folder."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            parsed, connect_args={"timeout": _BUSY_SECONDS}, max_overflow=-1, **_writers()
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    # Nothing here needs a session to stay with its connection, so that a pooler may stand between
    # (pgbouncer's transaction pooling): no prepared statements, no SET, no LISTEN, no cursors on
    # the server, and advisory locks end with their transaction.
    return create_engine(
        parsed,
        pool_pre_ping=True,
        pool_size=_CONNECTIONS // 2,
        max_overflow=_CONNECTIONS - _CONNECTIONS // 2,
        connect_args={"prepare_threshold": None, **_PATIENCE},
        **_writers(),
    )


def _writers() -> dict[str, Any]:
    return {"execution_options": {"writers": threading.BoundedSemaphore(_MOST_WRITERS)}}


def _configure_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_immediate` says
    # WAL lets readers and one writer go side by side; FULL survives a power cut.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    # A deferred transaction that turns into a write fails at once when another writes; an
    # immediate one waits its turn. Readers say so and stay deferred.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in a read transaction."""
    with engine.connect() as plain:
        connection = plain.execution_options(read_only=True)
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in a write transaction, committed at the end.

    Raises sqlalchemy's TimeoutError if too many writers of this process wait for the database.
    """
    writers = engine.get_execution_options()["writers"]
    if not writers.acquire(timeout=_BUSY_SECONDS):
        raise TimeoutError(f"{_MOST_WRITERS} writers have waited for {_BUSY_SECONDS:.0f} s")
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        writers.release()


def clock(engine: Engine) -> float:
    """Return the database's time, in seconds since 1970."""
    with reading(engine) as connection:
        return float(connection.execute(select(now())).scalar_one())


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision; safe when several processes do so at once."""
    with reading(engine) as connection:
        if _is_newest(connection):
            return  # without a wait for whoever writes
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7267001)")
        if not _is_newest(connection):
            _upgrade(connection)


def _is_newest(connection: Connection) -> bool:
    """Say whether there is nothing to do, without Alembic: importing it takes half a second."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    newest = max(path.name for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
    return bool(revision == newest.partition("_")[0])


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
