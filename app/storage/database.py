"""The database: connections, transactions, its clock, its migrations."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Float

from app.contract.errors import InvalidRequestError, NotReadyError, Problem
from app.storage.tables import metadata

_MIGRATIONS = Path(__file__).with_name("migrations")
_BUSY_SECONDS = 10.0
# Writers may use only this many of an engine's connections, so that readers always find a free one.
_MOST_WRITERS = 8
_CONNECTIONS = 20
# The number of values in one IN (...): well below both databases' limits.
MOST_PARAMETERS = 500

# Raised when the database does not respond: it is down, locked, or starting up.
AWAY = (InterfaceError, OperationalError)

# Detect a vanished server after 30 s, not after TCP's 15 minutes.
_TIMEOUTS = {"connect_timeout": 10, "tcp_user_timeout": 30_000}

# Alembic logs every start at INFO.
logging.getLogger("alembic").setLevel(logging.WARNING)


class now(FunctionElement[float]):  # noqa: N801 - reads as SQL does
    """The database's clock in seconds since 1970, the only clock for times in rows."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def connect(place: str | Path) -> Engine:
    """Return an engine for the path of a SQLite file, or for a SQLite or PostgreSQL URL.

    Only the owner can read a new SQLite file and its folder. Raises InvalidRequestError for other
    URLs, NotReadyError if the folder cannot be created.
    """
    # A path must not become a URL string: `?` and `%41` would be parsed.
    path = place if isinstance(place, Path) else None
    url = URL.create("sqlite", database=str(path)) if path else _parse(str(place))
    if url.get_backend_name() == "sqlite":
        if url.database and not url.database.startswith("file:"):
            _make_private(Path(url.database))
        engine = create_engine(
            url, connect_args={"timeout": _BUSY_SECONDS}, max_overflow=-1, **_writers()
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    # Works behind a transaction pooler such as pgbouncer: no prepared statements, no SET, no
    # LISTEN, no server-side cursors, and advisory locks that end with their transaction. Without
    # an explicit encoding the driver would use the server's.
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_size=_CONNECTIONS // 2,
        max_overflow=_CONNECTIONS - _CONNECTIONS // 2,
        connect_args={"client_encoding": "utf8", "prepare_threshold": None, **_TIMEOUTS},
        **_writers(),
    )


def _writers() -> dict[str, Any]:
    return {"execution_options": {"writers": threading.BoundedSemaphore(_MOST_WRITERS)}}


def _parse(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in {"sqlite", "postgresql", "postgres"}:
        message = "Give a SQLite or PostgreSQL URL, such as postgresql://user@host/name."
        raise InvalidRequestError.of([Problem(message, "AFLUENTE_DATABASE_URL")])
    in_memory = url.database in {None, "", ":memory:"} or url.query.get("mode") == "memory"
    if url.get_backend_name() == "sqlite" and in_memory:
        message = (
            "SQLite needs a file that processes share, such as sqlite:////var/lib/afluente.db."
        )
        raise InvalidRequestError.of([Problem(message, "AFLUENTE_DATABASE_URL")])
    return url


def _make_private(file: Path) -> None:
    """Create a SQLite file with mode 0600; SQLite's WAL files inherit the mode."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise NotReadyError(
            f"The database {file} cannot be created: {error.strerror}; choose another folder with "
            "AFLUENTE_DATA_DIR or AFLUENTE_DATABASE_URL."
        ) from None


def _configure_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # `_begin_immediate` begins transactions
    # WAL allows readers during a write; FULL survives a power cut.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    # A deferred transaction that becomes a write fails if another write is open; an immediate one
    # waits. Read transactions stay deferred.
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
        raise PoolTimeoutError(f"{_MOST_WRITERS} writers have waited for {_BUSY_SECONDS:.0f} s")
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
    """Bring the schema to the newest revision; several processes may do so at the same time.

    Raises NotReadyError, with the reason, for a database that cannot be used.
    """
    try:
        with reading(engine) as connection:
            if engine.dialect.name == "postgresql":
                _check_encoding(connection)
            if _revision(connection) == _newest_revision():
                return  # without waiting for writers
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7267001)")
            revision = _revision(connection)
            if revision is None or revision < _newest_revision():
                _upgrade(connection)
            elif revision > _newest_revision():
                raise NotReadyError(_other_schema(revision))
    except SQLAlchemyError as error:
        if why := reason(error):
            raise NotReadyError(why) from error
        raise


def check(engine: Engine) -> None:
    """Raise NotReadyError unless every table can be read and the schema is of this version.

    Lets the database's own errors through; `reason` explains them.
    """
    with reading(engine) as connection:
        revision = _revision(connection)
        if revision != _newest_revision():
            raise NotReadyError(_other_schema(revision))
        if engine.dialect.name == "postgresql":
            _check_writable(connection)
        for table in metadata.sorted_tables:
            # Read the first and the last row, by key: a truncated file lacks one of them.
            keys = list(table.primary_key)
            column = next(column for column in table.c if column not in keys)
            for order in (keys, [key.desc() for key in keys]):
                connection.execute(select(column).order_by(*order).limit(1)).all()


def reason(error: BaseException) -> str | None:
    """Return a public explanation of a database error; None if the query itself is at fault."""
    if isinstance(error, PoolTimeoutError):
        return "All connections to the database are in use; try again in a few seconds."
    if not isinstance(error, DBAPIError):
        return None
    code = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None)
    text = f"{code or ''} {error.orig}"
    for pattern, why in _REASONS.items():
        if re.search(pattern, text):
            return why
    if error.connection_invalidated or isinstance(error, AWAY):
        return "The database does not respond; try again in a few seconds."
    return None


DAMAGED = "The database is damaged: restore it from a backup, or repair it."
# Patterns for `CODE text`: SQLite's error name or PostgreSQL's SQLSTATE, and the message; the first
# match counts. The message itself stays private: it may contain hosts, paths and statements.
_REASONS = {
    r"^SQLITE_(CORRUPT|NOTADB)|^XX00[12] ": DAMAGED,
    r"^SQLITE_FULL|^53100 |No space left": "The disk of the database is full.",
    r"^SQLITE_IOERR": "The disk of the database cannot be read or written.",
    r"^SQLITE_CANTOPEN": "The database's file cannot be opened.",
    r"^SQLITE_READONLY|^25006 ": "The database is read-only.",
    r"^SQLITE_(BUSY|LOCKED|PROTOCOL)|^(55P03|40001|40P01|57014) ": (
        "The database is busy; try again in a few seconds."
    ),
    r"no such (table|column)|^42(P01|703) ": (
        "The database lacks a table of this version; restart the service to create it."
    ),
    r"^(53300|53400) |too many (clients|connections)": "The database has no free connection.",
    r"^53200 ": "The database is out of memory.",
    r"^57P0|starting up|shutting down|recovery mode": (
        "The database is starting or stopping; try again in a few seconds."
    ),
    r"^(28|42501)|(authentication failed|no password supplied|no pg_hba.conf entry)"
    r"|role .* does not exist": (
        "The database refuses the service's user or password (AFLUENTE_DATABASE_URL)."
    ),
    r"^3D000 |database .* does not exist": (
        "The database that AFLUENTE_DATABASE_URL names does not exist."
    ),
    r"Connection refused|could not translate|failed to resolve|timeout expired|No route": (
        "The database cannot be reached."
    ),
}


def _check_encoding(connection: Connection) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise NotReadyError(
            f"The database's encoding is {encoding}, which cannot store all text; create one with "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0."
        )


def _check_writable(connection: Connection) -> None:
    # The server's default: this transaction itself is read-only.
    if connection.exec_driver_sql("SHOW default_transaction_read_only").scalar() == "on" or (
        connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar()
    ):
        raise NotReadyError("The database is read-only, or a standby.")


def _revision(connection: Connection) -> str | None:
    """Return the schema's revision, without importing Alembic, which takes half a second."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


@cache
def _newest_revision() -> str:
    newest = max(path.name for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
    return newest.partition("_")[0]


def _other_schema(revision: str | None) -> str:
    return (
        f"The database's schema has revision {revision or 'none'}, but this version of Afluente "
        f"needs {_newest_revision()}; run the same version everywhere."
    )


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
