"""Nothing is decoded twice: the API's merges with the worker's real work."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import OperationalError

from app.contract.settings import Settings
from app.services.preparation import source_policy
from app.sources.fetch import fetch
from app.sources.resolve import resolve
from app.storage import evaluations, leases, merges, parts
from app.storage.artifacts import ArtifactStore
from app.storage.database import connect, migrate, reading, writing
from app.storage.leases import JobKind
from app.storage.tables import evaluation_parts, transcripts
from tests.app.routes.conftest import application
from worker import attempts, evaluation_job, merge_job
from worker.attempts import attempt_job, attempt_parts
from worker.evaluation_job import PartWork, do_evaluation
from worker.evaluation_parts import PartDecoder
from worker.merge_job import do_merge
from worker.merging.engine import run

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
UTTERANCES = 3


class Service:
    """The API over a database, and a worker that does what is queued when it is told to."""

    def __init__(self, client: TestClient, settings: Settings) -> None:
        self.client, self.settings = client, settings

    def work(self, kind: JobKind, job_id: str) -> None:
        works = {JobKind.MERGE: do_merge, JobKind.EVALUATION: do_evaluation}
        attempt_job(kind, job_id, self.settings, "wrk_test", works)

    def recipe(self, method: str) -> dict[str, Any]:
        models = SAMPLES / "checkpoints"
        return {
            "base": (models / "base").as_uri(),
            "checkpoints": [(models / name).as_uri() for name in ("telephone", "fast")],
            "method": method,
        }

    def merge(self, method: str) -> str:
        merge_id = self.client.post("/merges", json=self.recipe(method)).json()["id"]
        self.work(JobKind.MERGE, merge_id)
        return str(merge_id)

    def evaluate(self, merge_id: str, spec: dict[str, Any]) -> str:
        answer = self.client.post(f"/merges/{merge_id}/evaluations", json=spec)
        evaluation_id = str(answer.json()["id"])
        self.work(JobKind.EVALUATION, evaluation_id)
        found = self.client.get(answer.headers["location"]).json()
        assert found["status"] == "succeeded", found
        return evaluation_id

    def decoded(self) -> int:
        """How many transcripts have ever been made."""
        engine = connect(self.settings.database)
        with reading(engine) as connection:
            count = connection.execute(select(func.count()).select_from(transcripts)).scalar_one()
        engine.dispose()
        return int(count)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = Settings(
        data_dir=tmp_path / "data",
        device="cpu",
        file_roots=(tmp_path / "speech", tmp_path / "audio"),
        broker_url="redis://127.0.0.1:1/0",
    )
    settings.data_dir.mkdir()
    engine = connect(settings.database)
    migrate(engine)
    engine.dispose()
    with TestClient(application(settings), base_url="http://localhost") as client:
        yield Service(client, settings)


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    folder = SAMPLES / "speech" / "telephone"
    lines = (folder / "manifest.jsonl").read_text().splitlines()[:UTTERANCES]
    entries = [json.loads(line) for line in lines]
    speech, audio = tmp_path / "speech", tmp_path / "audio"
    speech.mkdir()
    audio.mkdir()
    for entry in entries:
        entry["audio_filepath"] = str(shutil.copy(folder / entry["audio_filepath"], audio))
    (speech / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    dataset = {"name": "telephone", "uri": speech.as_uri(), "group": "in_domain"}
    return {"datasets": [dataset], "language": "pt", "num_beams": 1}


def test_a_trainers_checkpoint_is_decoded_with_the_files_of_the_base(
    service: Service, spec: dict[str, Any], tmp_path: Path
) -> None:
    bare = tmp_path / "speech" / "checkpoint-1000"
    whole = SAMPLES / "checkpoints" / "telephone"
    bare.mkdir()
    for path in whole.iterdir():
        if path.name in {"config.json", "generation_config.json"} or "safetensors" in path.name:
            shutil.copy(path, bare)
    recipe = service.recipe("soup") | {"checkpoints": [bare.as_uri(), whole.as_uri()]}
    answer = service.client.post("/merges", json=recipe)
    assert answer.status_code == 202, answer.text
    merge_id = answer.json()["id"]
    assert "companions_from_base" in {one["code"] for one in answer.json()["warnings"]}
    service.work(JobKind.MERGE, merge_id)
    service.evaluate(merge_id, spec)
    table = service.client.get(f"/merges/{merge_id}/wer").json()
    for name in ("checkpoint-1000", "telephone"):
        (dataset,) = table["systems"][name]["datasets"]
        assert dataset["wer"] == 0.0


def test_a_second_merge_is_all_that_a_second_evaluation_decodes(
    service: Service, spec: dict[str, Any]
) -> None:
    first, second = service.merge("soup"), service.merge("task_arithmetic")
    service.evaluate(first, spec)
    assert service.decoded() == 4 * UTTERANCES  # merge, base, two experts
    compared = spec | {"compare_with": ["base", "checkpoints", f"merge://{first}"]}
    service.evaluate(second, compared)
    assert service.decoded() == 5 * UTTERANCES
    url = f"/merges/{second}/wer/utterances"
    for system, known in {"merge": False, "base": True, "fast": True, first: True}.items():
        found = service.client.get(url, params={"system": system}).json()["data"]
        assert [entry["cached"] for entry in found] == [known] * UTTERANCES
    [dataset] = service.client.get(f"/merges/{second}/wer").json()["datasets"]
    assert set(dataset["compared_with"]) == {"base", "telephone", "fast", first}

    again = service.evaluate(second, compared | {"normalizer": "portuguese"})
    scored = service.client.get(f"/merges/{second}/wer?evaluation={again}").json()
    asked = service.client.get(f"/merges/{second}/wer?normalizer=portuguese").json()
    assert scored["datasets"][0]["wer"] == asked["datasets"][0]["wer"]
    assert service.decoded() == 5 * UTTERANCES


def test_published_files_are_not_hashed_again(service: Service) -> None:
    uri = f"merge://{service.merge('soup')}"
    engine = connect(service.settings.database)
    policy = source_policy(service.settings, engine)
    found = resolve(uri, policy)
    pieces: list[int] = []
    fetch(found, policy, progress=lambda done, total: pieces.append(done))
    engine.dispose()
    # Reading takes a megabyte at a time, and the model has more.
    assert max(file.size for file in found.files) > 1 << 20
    assert len(pieces) == len(found.files)


@dataclass
class Begun:
    """An evaluation of three systems whose first part is done, and whose lead has died."""

    id: str
    url: str
    engine: Engine

    def show(self, service: Service) -> dict[str, Any]:
        found: dict[str, Any] = service.client.get(self.url).json()
        return found


@pytest.fixture
def begun(service: Service, spec: dict[str, Any]) -> Iterator[Begun]:
    merge_id = service.merge("soup")
    answer = service.client.post(f"/merges/{merge_id}/evaluations", json=spec)
    evaluation_id, url = str(answer.json()["id"]), answer.headers["location"]
    engine = connect(service.settings.database)
    lead = leases.take(engine, JobKind.EVALUATION, evaluation_id, "wrk_dead:x:1:1", 10)
    assert lead is not None
    leases.abandon(engine, lead.owner)
    divided = PartDecoder.of(service.settings, engine, evaluation_id).divide()
    assert [(part.system, part.utterances) for part in divided] == [
        (system, UTTERANCES) for system in ("merge", "base", "telephone", "fast")
    ]
    parts.plan(engine, lead, "cpu", divided)
    # A merge waits for a worker, so the helper leaves after one part.
    service.client.post("/merges", json=service.recipe("soup"))
    attempt_parts(evaluation_id, service.settings, "wrk_helper", "cpu", PartWork())
    yield Begun(evaluation_id, url, engine)
    engine.dispose()


def test_finished_parts_are_not_repeated(service: Service, begun: Begun) -> None:
    [done] = evaluations.results(begun.engine, begun.show(service)["merge_id"])
    assert begun.show(service)["progress"]["done"] == UTTERANCES
    leases.recover(begun.engine, 5, {}, {})
    service.work(JobKind.EVALUATION, begun.id)
    assert begun.show(service)["status"] == "succeeded"
    found = evaluations.results(begun.engine, begun.show(service)["merge_id"])
    assert [row["system"] for row in found] == ["merge", "base", "telephone", "fast"]
    assert found[0]["created_at"] == done["created_at"]


@pytest.mark.parametrize(("lacks", "has"), [("audio", "speech"), ("speech", "audio")])
def test_a_worker_without_access_leaves_its_part_to_the_lead(
    service: Service, begun: Begun, tmp_path: Path, lacks: str, has: str
) -> None:
    assert any((tmp_path / lacks).iterdir())
    ill = Settings(
        data_dir=service.settings.data_dir,
        device="cpu",
        file_roots=(tmp_path / has,),
        broker_url="redis://127.0.0.1:1/0",
    )
    attempt_parts(begun.id, ill, "wrk_ill", "cpu", PartWork())
    with reading(begun.engine) as connection:
        query = select(evaluation_parts.c.status).order_by(evaluation_parts.c.position)
        left = query.where(evaluation_parts.c.lead_only.is_(True))
        assert connection.execute(query).scalars().all() == ["succeeded"] + ["queued"] * 3
        assert len(connection.execute(left).all()) == 1
    leases.recover(begun.engine, 5, {}, {})
    service.work(JobKind.EVALUATION, begun.id)
    assert begun.show(service)["status"] == "succeeded"


def test_a_manifest_that_changes_fails_the_evaluation(
    service: Service, begun: Begun, tmp_path: Path
) -> None:
    leases.recover(begun.engine, 5, {}, {})
    manifest = tmp_path / "speech" / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + "\n")
    service.work(JobKind.EVALUATION, begun.id)
    found = begun.show(service)
    assert (found["status"], found["error"]["code"]) == ("failed", "source_changed")
    assert "manifest changed" in found["error"]["message"]


def test_an_evaluation_survives_a_pause_of_the_database(service: Service, begun: Begun) -> None:
    leases.recover(begun.engine, 5, {}, {})
    with ThreadPoolExecutor(1) as pool:
        led = _lead_without(service, begun, pool)
        for there, away in (("evaluation_parts", "away"), ("away", "evaluation_parts")):
            _rename(begun.engine, there, away)
            time.sleep(0.5)
        assert not led.done(), begun.show(service)
        leases.abandon(begun.engine, "wrk_other")
        leases.recover(begun.engine, 5, {}, {})
        led.result(60)
    assert begun.show(service)["status"] == "succeeded"


@pytest.mark.parametrize(
    ("module", "step", "table"),
    [
        (merges, "set_phase", "merges"),
        (merges, "set_sources", "merges"),
        (merges, "set_warnings", "merges"),
        (merge_job, "describe_files", "merges"),  # the artifact is there, and not yet recorded
        (parts, "are_planned", "evaluation_parts"),
        (parts, "plan", "evaluation_parts"),
        (parts, "finish", "evaluation_parts"),
        (evaluation_job, "decide", "evaluations"),
    ],
)
def test_a_job_survives_a_pause_of_the_database_while_writing(
    service: Service,
    spec: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    step: str,
    table: str,
) -> None:
    whole, engine = getattr(module, step), connect(service.settings.database)
    back: list[Timer] = []

    def without_the_table(*arguments: Any, **options: Any) -> Any:
        if not back:
            _rename(engine, table, "away")
            back.append(Timer(1.0, _rename, (engine, "away", table)))
            back[0].start()
        return whole(*arguments, **options)

    monkeypatch.setattr(module, step, without_the_table)
    service.evaluate(service.merge("soup"), spec)
    assert back
    engine.dispose()


@pytest.mark.parametrize(
    ("module", "step", "table"),
    [(merges, "get", "merges"), (evaluation_job.PartDecoder, "of", "evaluations")],
)
def test_a_job_that_cannot_go_on_without_the_database_is_let_go_and_not_failed(
    service: Service,
    spec: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    step: str,
    table: str,
) -> None:
    merge_id = service.merge("soup")
    if table == "merges":
        url = f"/merges/{service.client.post('/merges', json=service.recipe('soup')).json()['id']}"
    else:
        answer = service.client.post(f"/merges/{merge_id}/evaluations", json=spec)
        url = answer.headers["location"]
    job_id, kind = (
        url.rpartition("/")[2],
        JobKind.MERGE if table == "merges" else JobKind.EVALUATION,
    )
    engine = connect(service.settings.database)

    whole = getattr(module, step)

    def without_the_table(*arguments: Any) -> Any:
        _rename(engine, table, "away")
        try:
            return whole(*arguments)
        finally:
            _rename(engine, "away", table)

    with monkeypatch.context() as patched:
        patched.setattr(module, step, without_the_table)
        service.work(kind, job_id)
    found = service.client.get(url).json()
    assert (found["status"], found["error"]) == ("running", None)
    leases.abandon(engine, "wrk_test")
    leases.recover(engine, 5, {}, {})
    service.work(kind, job_id)
    assert service.client.get(url).json()["status"] == "succeeded"
    engine.dispose()


def test_published_but_unrecorded_files_are_adopted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_id = str(service.client.post("/merges", json=service.recipe("soup")).json()["id"])
    engine = connect(service.settings.database)

    def unreachable(*_: Any) -> None:
        raise OperationalError("COMMIT", {}, Exception("the database system is shutting down"))

    with monkeypatch.context() as patched:
        patched.setattr(merge_job, "finish", unreachable)
        patched.setattr(attempts, "_DATABASE_SECONDS", service.settings.lease_seconds)
        service.work(JobKind.MERGE, merge_id)
    assert service.client.get(f"/merges/{merge_id}").json()["status"] == "running"
    leases.abandon(engine, "wrk_test")
    leases.recover(engine, 5, {}, {})
    merged: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(run, "work_through", lambda task, *_: merged.append(str(task)))
        service.work(JobKind.MERGE, merge_id)
    assert service.client.get(f"/merges/{merge_id}").json()["status"] == "succeeded"
    assert merged == []
    store = ArtifactStore(service.settings.artifacts)
    assert store.earlier_attempts(merge_id) == []
    engine.dispose()


def test_a_part_with_a_lost_response_does_not_fail_its_evaluation(
    service: Service, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, lost = parts.finish, []

    def answer_lost(*arguments: Any) -> None:
        whole(*arguments)
        if not lost:
            lost.append(True)
            raise OperationalError("COMMIT", {}, Exception("the connection was closed"))

    monkeypatch.setattr(parts, "finish", answer_lost)
    service.evaluate(service.merge("soup"), spec)
    assert lost


def _rename(engine: Engine, table: str, name: str) -> None:
    """Take a table away from whoever uses it, or bring it back."""
    with writing(engine) as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")


def _lead_without(service: Service, begun: Begun, pool: ThreadPoolExecutor) -> Future[None]:
    """Let a worker lead until it only waits for a part that another has."""
    part = parts.claim(begun.engine, begun.id, "wrk_other:x:1:1", 60, "cpu")
    assert part is not None
    led = pool.submit(service.work, JobKind.EVALUATION, begun.id)
    query = select(func.count()).where(evaluation_parts.c.status == "succeeded")
    deadline = time.monotonic() + 60
    while True:
        with reading(begun.engine) as connection:
            if connection.execute(query).scalar_one() == 3:
                return led
        assert time.monotonic() < deadline
        time.sleep(0.05)
