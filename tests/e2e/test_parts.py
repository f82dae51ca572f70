"""One evaluation on several workers: in parallel, with the same result, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from sqlalchemy import Engine, delete, select

from app.storage import fleet
from app.storage.database import connect, reading, writing
from app.storage.tables import evaluation_parts, evaluations, transcripts
from tests.e2e.stack import Stack, running

RECOVERY_SECONDS = 15.0
CANCEL_SECONDS = 2.0
SETS, UTTERANCES = 4, 40
_TIMES = {"decode_seconds", "rtfx"}


@pytest.fixture(scope="module")
def sets(models: Path) -> list[dict[str, str]]:
    """Four sets of speech, and one of audio that the first has too."""
    folder = models / "sets"
    folder.mkdir()
    for number in range(SETS):
        sound = np.random.default_rng(number).normal(0, 0.1, UTTERANCES * 4_000)
        soundfile.write(folder / f"{number}.wav", sound.astype(np.float32), 16_000)
        _write(folder / f"{number}.jsonl", f"{number}.wav", range(UTTERANCES))
    _write(folder / "again.jsonl", "0.wav", range(UTTERANCES // 2, UTTERANCES))
    names = [*map(str, range(SETS)), "again"]
    return [{"name": name, "uri": (folder / f"{name}.jsonl").as_uri()} for name in names]


def _write(manifest: Path, audio: str, numbers: range) -> None:
    lines = [
        {"audio_filepath": audio, "text": "um dois", "offset": number / 4, "duration": 0.25}
        for number in numbers
    ]
    manifest.write_text("\n".join(map(json.dumps, lines)))


class Service:
    """A stack with some workers, a merge, and what is in the database beside them."""

    def __init__(self, stack: Stack, engine: Engine, models: Path, sets: list[Any]) -> None:
        self.stack, self.engine, self.sets = stack, engine, sets
        recipe = {
            "base": (models / "base").as_uri(),
            "checkpoints": [(models / "telephone").as_uri(), (models / "parliament").as_uri()],
            "method": "soup",
        }
        self.merge_id = stack.finish(stack.post(recipe)["id"])["id"]

    def evaluate(self) -> str:
        """Ask all workers for an evaluation that decodes everything; return its path."""
        workers = sum(name.startswith("worker") for name in self.stack.state["children"])
        self.wait(lambda: len(fleet.alive(self.engine, 15.0)) >= workers)
        spec = {
            "datasets": self.sets, "language": "pt", "batch_size": 1, "num_beams": 3,
            "compare_with": ["base"], "gate": {"max_wer": 1},
        }  # fmt: skip
        with writing(self.engine) as connection:
            connection.execute(delete(transcripts))
        answer = self.stack.http.post(f"/merges/{self.merge_id}/evaluations", json=spec)
        assert answer.status_code == 202, answer.text
        return str(answer.headers["location"])

    def running(self) -> dict[str, Any]:
        """Return the parts that are under way, by their owners."""
        query = select(evaluation_parts).where(evaluation_parts.c.status == "running")
        with reading(self.engine) as connection:
            return {row["lease_owner"]: row for row in connection.execute(query).mappings()}

    def wait(self, done: Callable[[], bool], seconds: float = 60.0) -> float:
        """Wait until `done` says so, and return after how many seconds that was."""
        begun = time.monotonic()
        while not done():
            assert time.monotonic() - begun < seconds, self.stack.log.read_text()
            time.sleep(0.02)
        return time.monotonic() - begun

    def wait_for_two(self) -> dict[str, Any]:
        """Return the parts of two workers that both get on with theirs."""
        begun: dict[str, Any] = {}

        def both() -> bool:
            begun.clear()
            begun.update(self.running())
            return len(begun) == 2 and all(row["progress_done"] for row in begun.values())

        self.wait(both)
        return begun

    def finish(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def ended() -> bool:
            found.update(self.stack.get(path))
            return found["status"] not in {"queued", "running", "cancelling"}

        self.wait(ended)
        return found

    def rates(self, path: str) -> tuple[Any, Any]:
        """Return what `/wer` and its utterances say of the evaluation, but for names and times."""
        evaluation = self.finish(path)
        assert evaluation["status"] == "succeeded", evaluation
        assert evaluation["progress"]["fraction"] == 1.0
        query = f"evaluation={evaluation['id']}"
        document = self.stack.get(f"/merges/{self.merge_id}/wer?{query}")
        assert document["evaluation"]["gate"] == evaluation["gate"]
        assert {one["status"] for one in document["evaluation"].pop("sets")} == {"succeeded"}
        del document["merge_id"], document["evaluation"]["id"]
        url = f"/merges/{self.merge_id}/wer/utterances?page_size=1000&{query}"
        heard = [self.stack.get(f"{url}&system={system}")["data"] for system in ("merge", "base")]
        return _without_times(document), _without_times(heard)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _serve(
    folder: Path, workers: int, models: Path, sets: list[dict[str, str]]
) -> Iterator[Service]:
    settings = {"AFLUENTE_FILE_ROOTS": str(models), "AFLUENTE_THREADS": "1"}
    with running(folder / "data", workers, **settings) as stack:
        engine = connect(f"sqlite:///{stack.data / 'afluente.db'}")
        yield Service(stack, engine, models, sets)
        engine.dispose()


@pytest.fixture(scope="module")
def service(
    models: Path, sets: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    yield from _serve(tmp_path_factory.mktemp("two"), 2, models, sets)


@pytest.fixture(scope="module")
def undisturbed(
    models: Path, sets: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """What one worker finds."""
    one = _serve(tmp_path_factory.mktemp("one"), 1, models, sets)
    alone = next(one)
    found = alone.rates(alone.evaluate())
    next(one, None)
    return found


def test_two_workers_decode_two_sets_at_once_and_find_what_one_finds(service, undisturbed):
    path = service.evaluate()
    begun = service.wait_for_two()
    assert len({owner.split(":")[0] for owner in begun}) == 2
    assert len({row["dataset"] for row in begun.values()}) == 2
    document, heard = service.rates(path)
    assert (document, heard) == undisturbed
    # What two sets share is decoded once, as it is by one worker.
    decoded = [entry for entry in heard[0] if not entry["cached"]]
    assert len(decoded) == SETS * UTTERANCES
    assert service.running() == {}


@pytest.mark.parametrize("victim", ["lead", "helper"])
def test_a_killed_workers_part_is_taken_over(service, undisturbed, victim):
    path = service.evaluate()
    begun = service.wait_for_two()
    lead = _lead(service)
    owner = next(one for one in begun if (one == lead) == (victim == "lead"))
    lost = begun[owner]
    os.kill(_pid(owner), signal.SIGKILL)

    def taken_up() -> bool:
        now = {row["id"]: row for row in service.running().values()}
        return lost["id"] in now and now[lost["id"]]["lease_owner"] != owner

    assert service.wait(taken_up, RECOVERY_SECONDS) < RECOVERY_SECONDS
    document, heard = service.rates(path)
    expected, expected_heard = undisturbed
    assert document == expected
    assert _heard(heard) == _heard(expected_heard)
    assert service.stack.get(path)["attempt"] == (2 if victim == "lead" else 1)


def test_a_stopping_worker_gives_its_part_back(service, undisturbed):
    path = service.evaluate()
    begun = service.wait_for_two()
    owner = next(one for one in begun if one != _lead(service))
    celery, supervisor = psutil.Process(_pid(owner)).parents()[:2]
    assert celery.parent() == supervisor
    supervisor.terminate()
    query = select(evaluation_parts).where(evaluation_parts.c.id == begun[owner]["id"])

    def given_back() -> bool:
        with reading(service.engine) as connection:
            row = connection.execute(query).mappings().one()
        assert row["crashes"] == 0
        return bool(row["lease_owner"] != owner)

    service.wait(given_back, RECOVERY_SECONDS)
    document, heard = service.rates(path)
    assert document == undisturbed[0]
    assert _heard(heard) == _heard(undisturbed[1])


def test_cancelling_ends_both_within_two_seconds(service):
    path = service.evaluate()
    children = [psutil.Process(_pid(owner)) for owner in service.wait_for_two()]
    answer = service.stack.http.post(f"{path}/cancel")
    assert answer.status_code == 202
    assert service.wait(lambda: not any(map(_is_alive, children))) < CANCEL_SECONDS
    assert service.finish(path)["status"] == "cancelled"
    assert service.running() == {}


def _heard(systems: list[list[dict[str, Any]]]) -> Any:
    """Leave out what was cached: that differs where a part was begun twice."""
    return [[{**entry, "cached": None} for entry in entries] for entries in systems]


def _lead(service: Service) -> str:
    query = select(evaluations.c.lease_owner).where(evaluations.c.status == "running")
    with reading(service.engine) as connection:
        return str(connection.execute(query).scalar_one())


def _pid(owner: str) -> int:
    return int(owner.split(":")[2])


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
