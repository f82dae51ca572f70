from __future__ import annotations

from sqlalchemy import Engine, select

from app.storage import evaluations, events, leases, merges, parts
from app.storage.database import reading, writing
from app.storage.leases import JobKind
from app.storage.parts import PlannedPart
from app.storage.tables import evaluation_results, metadata
from tests.app.storage.conftest import make_merge


def _pages(engine: Engine, size: int, between=lambda: None) -> list[str]:
    seen, before = [], None
    while rows := merges.page(engine, before=before, size=size):
        seen += [row["id"] for row in rows]
        before = (rows[-1]["created_at"], rows[-1]["id"])
        between()
    return seen


def test_pages_hold_every_merge_once_newest_first_whatever_is_added(engine: Engine):
    made = [make_merge(engine) for _ in range(7)]
    rows = merges.page(engine, size=100)
    order = [(row["created_at"], row["id"]) for row in rows]
    assert order == sorted(order, reverse=True)
    seen = _pages(engine, 3, between=lambda: make_merge(engine))
    assert seen == [row["id"] for row in rows]
    assert set(seen) == set(made)


def test_filters_hold(engine: Engine):
    wanted = make_merge(engine, name="wanted")
    make_merge(engine, name="other")
    leases.take(engine, JobKind.MERGE, wanted, "a", 30)
    assert [row["id"] for row in merges.page(engine, name="wanted")] == [wanted]
    assert [row["id"] for row in merges.page(engine, status="running")] == [wanted]
    assert merges.page(engine, method="tsv_m") == []
    assert merges.counts(engine) == {"running": 1, "queued": 1}


def test_deleting_leaves_nothing_behind(engine: Engine, merge_id: str):
    lease = leases.take(engine, JobKind.MERGE, merge_id, "a", 30)
    assert lease is not None
    with writing(engine) as connection:
        evaluation_id = evaluations.create(connection, merge_id, {})
        leases.finish(connection, lease, "succeeded")
    evaluating = leases.take(engine, JobKind.EVALUATION, evaluation_id, "a", 30)
    assert evaluating is not None
    planned = PlannedPart("merge", "d", "a" * 64, "lane", utterances=1)
    parts.plan(engine, evaluating, "cpu", [planned, planned])
    part = parts.claim(engine, evaluation_id, "a", 30, "cpu")
    assert part is not None
    parts.finish(engine, part, "succeeded", {}, [])
    with writing(engine) as connection:
        assert merges.has_open_work(connection, merge_id)
        leases.finish(connection, evaluating, "succeeded")
        assert not merges.has_open_work(connection, merge_id)
        merges.remove(connection, merge_id)
    with reading(engine) as connection:
        for table in metadata.sorted_tables:
            assert connection.execute(select(table)).all() == []
    assert events.read(engine, merge_id) == []


def test_a_warning_is_recorded_and_announced_once(engine: Engine, merge_id: str):
    lease = leases.take(engine, JobKind.MERGE, merge_id, "a", 30)
    assert lease is not None
    warning = {"code": "zero_task_vector", "message": "m"}
    for _ in range(2):
        merges.set_warnings(engine, lease, [warning])
    row = merges.get(engine, merge_id)
    assert row is not None
    assert row["warnings"] == [warning]
    assert [e["type"] for e in events.read(engine, merge_id)].count("warning") == 1


def test_a_result_stored_twice_is_there_once(engine: Engine, merge_id: str):
    with writing(engine) as connection:
        evaluation_id = evaluations.create(connection, merge_id, {})
    stored = {"system": "base", "dataset": "d", "position": 0, "utterances": []}
    for number in range(2):
        with writing(engine) as connection:
            evaluations.save_result(connection, evaluation_id, result={"number": number}, **stored)
    assert [row["result"] for row in evaluations.results(engine, merge_id)] == [{"number": 1}]
    with reading(engine) as connection:
        assert len(connection.execute(select(evaluation_results)).all()) == 1
