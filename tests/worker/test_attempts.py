"""What the end of an attempt may delete and record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event

from app.contract.errors import StorageError
from app.contract.settings import Settings
from app.storage import leases, merges
from app.storage.artifacts import ArtifactStore
from app.storage.database import connect, migrate, writing
from app.storage.leases import JobKind, Lease, LeaseLostError
from app.storage.queue import Queue
from worker.attempts import Attempt, _run, attempt_lease
from worker.keeper import LeaseKeeper


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts)


def queued(engine: Engine) -> str:
    with writing(engine) as connection:
        return merges.create(
            connection, name=None, request={}, recipe={"method": "soup"}, sources={}
        )


def take(engine: Engine, merge_id: str, store: ArtifactStore, seconds: float) -> Lease:
    """Take the merge and open the attempt's folder."""
    lease = leases.take(engine, JobKind.MERGE, merge_id, "wrk_1:elsewhere:1:1", seconds)
    assert lease is not None
    if seconds < 0:
        leases.abandon(engine, lease.owner)
    folder = store.attempt_folder(merge_id, lease.fence)
    folder.mkdir(parents=True)
    (folder / "tensors").write_bytes(bytes(1000))
    return lease


def fill(attempt: Attempt) -> None:
    raise StorageError("The disk is full." + " " * 100_000)


def test_an_attempt_that_wakes_too_late_leaves_the_next_ones_scratch_alone(
    settings: Settings, engine: Engine, store: ArtifactStore
) -> None:
    merge_id = queued(engine)
    old = take(engine, merge_id, store, -1)
    leases.recover(engine, 5, {}, {})
    new = take(engine, merge_id, store, 30)
    # Its keeper, which would notice, has not run yet.
    keeper = LeaseKeeper(engine, old, settings, "wrk_1", lambda reason: None)
    queue = Queue(str(settings.broker))
    _run(Attempt(settings, engine, queue, store, old, keeper, "wrk_test"), fill)
    assert list(store.attempt_folder(merge_id, new.fence).iterdir())
    assert leases.status_of(engine, new) == "running"


def test_an_attempt_that_fills_the_disk_fails_and_frees_its_scratch(
    settings: Settings, engine: Engine, store: ArtifactStore
) -> None:
    merge_id = queued(engine)
    lease = take(engine, merge_id, store, 30)
    attempt_lease(engine, lease, settings, "wrk_1", fill)
    assert store.inventory() == []
    row = merges.get(engine, merge_id)
    assert row is not None
    assert (row["status"], row["error"]["code"]) == ("failed", "storage_unavailable")


def test_a_failure_is_recorded_though_the_scratch_has_filled_the_databases_disk_too(
    settings: Settings, engine: Engine, store: ArtifactStore
) -> None:
    merge_id = queued(engine)
    lease = take(engine, merge_id, store, 30)
    folder = store.attempt_folder(merge_id, lease.fence)

    @event.listens_for(engine, "begin")
    def limit(connection: Connection) -> None:
        """Let SQLite's file grow only if there is room, which the scratch takes."""
        most = 1 if folder.exists() else 1 << 30
        connection.exec_driver_sql(f"PRAGMA max_page_count = {most}")

    attempt_lease(engine, lease, settings, "wrk_1", fill)
    assert not folder.exists()
    row = merges.get(engine, merge_id)
    assert row is not None
    assert row["status"] == "failed"


def test_a_cancelled_job_ends_as_cancelled_even_if_a_lease_is_lost(
    settings: Settings, engine: Engine, store: ArtifactStore
) -> None:
    """As the lead of an evaluation does, whose part stores nothing any more."""
    merge_id = queued(engine)

    def cancel(_: Attempt) -> None:
        with writing(engine) as connection:
            leases.request_cancel(connection, JobKind.MERGE, merge_id)
        raise LeaseLostError("prt_1")

    attempt_lease(engine, take(engine, merge_id, store, 30), settings, "wrk_1", cancel)
    row = merges.get(engine, merge_id)
    assert row is not None
    assert row["status"] == "cancelled"
