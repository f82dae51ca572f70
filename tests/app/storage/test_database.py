from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, insert, select

from app.storage.database import clock, connect, migrate, reading, writing
from app.storage.tables import metadata, workers


def test_migrations_and_tables_say_the_same(engine: Engine):
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
