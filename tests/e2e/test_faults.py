"""Whatever is killed, whenever: every accepted merge succeeds with the same bytes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from app.storage.leases import JobKind
from app.storage.queue import Queue
from tests.e2e.stack import Stack, afluente, digests, heavy_recipe, running

# From when a worker is there: one that was killed whole has to be started first.
RECOVERY_SECONDS = 15.0


@pytest.fixture(scope="module")
def stack(heavy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("faults")
    with running(folder / "data", AFLUENTE_FILE_ROOTS=str(heavy), AFLUENTE_THREADS="1") as one:
        yield one


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, heavy: Path) -> dict[str, str]:
    return digests(stack.finish(stack.post(heavy_recipe(heavy))["id"]))


def _half_done(merge: dict[str, Any]) -> bool:
    assert merge["status"] in {"queued", "running"}, "the merge was too quick to be disturbed"
    # The costly matrices come first: with an eighth of the tensors about half of the work is done.
    progress = merge["progress"] or {"done": 0, "total": None}
    return merge["phase"] == "merging" and progress["done"] * 8 > (progress["total"] or 1e9)


@pytest.mark.parametrize("victim", ["api", "valkey", "worker 1", "the worker's child"])
def test_a_killed_process_comes_back_and_the_merge_is_the_same(stack, heavy, undisturbed, victim):
    merge_id = stack.post(heavy_recipe(heavy))["id"]
    stack.wait_for(merge_id, _half_done)
    workers_seen = stack.log.read_text().count("ready.")
    if victim == "the worker's child":
        _task_process(stack).kill()
    else:
        stack.kill(victim)
    if victim == "worker 1":
        stack.wait_for(merge_id, lambda _: stack.log.read_text().count("ready.") > workers_seen)
    if "worker" in victim:
        stack.wait_for(merge_id, lambda merge: merge["attempt"] == 2, RECOVERY_SECONDS)
    merge = stack.finish(merge_id)
    assert merge["attempt"] == (2 if "worker" in victim else 1)
    assert digests(merge) == undisturbed
    if "worker" in victim:
        assert _first_progress_of_attempt(stack, merge_id, 2) > 0


def _first_progress_of_attempt(stack: Stack, merge_id: str, attempt: int) -> int:
    """Return how many tensors an attempt said were finished when it began to merge."""
    events = stack.get(f"/merges/{merge_id}/events?page_size=500")["data"]
    begun = next(n for n, e in enumerate(events) if e["data"].get("attempt") == attempt)
    counts = (e["data"] for e in events[begun:] if e["type"] == "progress")
    return next(int(data["done"]) for data in counts if data["unit"] == "tensors")


def _task_process(stack: Stack) -> psutil.Process:
    """Return the process that does the job: the youngest below the worker."""
    worker = psutil.Process(stack.state["children"]["worker 1"])
    return max(worker.children(recursive=True), key=lambda process: process.create_time())


def test_a_merge_posted_while_the_queue_is_down_is_not_forgotten(stack, heavy):
    os.kill(stack.state["children"]["valkey"], signal.SIGSTOP)
    try:
        merge_id = stack.post(heavy_recipe(heavy, "soup"))["id"]
    finally:
        stack.kill("valkey")
    stack.finish(merge_id)


def test_a_redelivered_message_starts_one_attempt(stack, heavy):
    merge_id = stack.post(heavy_recipe(heavy, "soup"))["id"]
    for _ in range(3):
        Queue(_broker_url(stack)).send(JobKind.MERGE, merge_id)
    stack.finish(merge_id)
    time.sleep(1.0)
    assert stack.get(f"/merges/{merge_id}")["attempt"] == 1


def test_a_queue_that_lost_every_message_is_filled_again_from_the_rows(stack, heavy, undisturbed):
    running_one = stack.post(heavy_recipe(heavy))["id"]
    queued_one = stack.post(heavy_recipe(heavy, "soup"))["id"]
    stack.wait_for(running_one, _half_done)
    redis.Redis.from_url(_broker_url(stack)).flushall()
    merges = [stack.finish(merge_id) for merge_id in (running_one, queued_one)]
    assert [merge["attempt"] for merge in merges] == [1, 1]
    assert digests(merges[0]) == undisturbed


def test_cancelling_takes_effect_within_two_seconds_and_leaves_nothing(stack, heavy):
    merge_id = stack.post(heavy_recipe(heavy))["id"]
    stack.wait_for(merge_id, _half_done)
    began = time.monotonic()
    answer = stack.http.post(f"/merges/{merge_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
    ends = {"succeeded", "failed", "cancelled"}
    merge = stack.wait_for(merge_id, lambda merge: merge["status"] in ends)
    assert time.monotonic() - began < 2.0
    assert (merge["status"], merge["artifacts"]) == ("cancelled", [])
    deadline = time.monotonic() + 15
    while list((stack.data / "artifacts").glob(f"*/{merge_id}*")):
        assert time.monotonic() < deadline, "scratch space was left behind"
        time.sleep(0.2)


def _broker_url(stack: Stack) -> str:
    """Return the queue's address as the worker was told it."""
    pid = stack.state["children"]["worker 1"]
    return psutil.Process(pid).environ()["AFLUENTE_BROKER_URL"]


def test_a_service_continues_after_a_stop_and_a_kill(heavy, undisturbed, tmp_path):
    data = tmp_path / "data"
    settings = {"AFLUENTE_FILE_ROOTS": str(heavy), "AFLUENTE_THREADS": "1"}
    with running(data, **settings) as first:
        half = first.post(heavy_recipe(heavy))["id"]
        # Several: the next service may have finished the first of them before it can be asked.
        queued = [first.post(heavy_recipe(heavy))["id"] for _ in range(4)]
        first.wait_for(half, _half_done)
        children = first.descendants()
        began = time.monotonic()
        assert first.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 30
        assert not [child for child in children if child.is_running()]
        assert not (data / "up.json").exists()
    with running(data, **settings) as second:
        # The first goes on before the service is known to be ready, and may have ended by now.
        assert second.get(f"/merges/{half}")["status"] in {"queued", "running", "succeeded"}
        second.wait_for(queued[-1], _half_done)
        orphans = second.descendants()
        second.up.kill()
        second.up.wait()
        _, alive = psutil.wait_procs(orphans, timeout=5)
        assert not alive
    with running(data, **settings) as third:
        for merge_id in (half, *queued):
            assert digests(third.finish(merge_id)) == undisturbed


def test_a_second_up_on_the_same_folder_is_refused(stack):
    done = afluente("up", "--port", "0", "--data-dir", str(stack.data))
    assert done.returncode == 1
    assert str(stack.up.pid) in done.stderr
    assert "--data-dir" in done.stderr
    assert stack.get("/healthz") == {"status": "ok"}


def test_a_used_port_is_reported_in_one_line(stack, tmp_path):
    port = stack.url.rpartition(":")[2]
    done = afluente("up", "--port", port, "--data-dir", str(tmp_path / "other"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--port" in done.stderr
