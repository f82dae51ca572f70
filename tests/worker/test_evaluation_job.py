"""What is decoded once is never decoded again: the API's merges, the worker's real work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app.contract.settings import Settings
from app.main import create_app
from app.storage.database import connect, migrate, reading
from app.storage.leases import JobKind
from app.storage.tables import transcripts
from worker.attempts import attempt_job
from worker.evaluation_job import do_evaluation
from worker.merge_job import do_merge

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
UTTERANCES = 3


class Service:
    """The API over a database, and a worker that does what is queued when it is told to."""

    def __init__(self, client: TestClient, settings: Settings) -> None:
        self.client, self.settings = client, settings

    def work(self, kind: JobKind, job_id: str) -> None:
        works = {JobKind.MERGE: do_merge, JobKind.EVALUATION: do_evaluation}
        attempt_job(kind, job_id, self.settings, "wrk_test", works)

    def merge(self, method: str) -> str:
        models = SAMPLES / "checkpoints"
        recipe = {
            "base": (models / "base").as_uri(),
            "checkpoints": [(models / name).as_uri() for name in ("telephone", "fast")],
            "method": method,
        }
        merge_id = self.client.post("/merges", json=recipe).json()["id"]
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
        file_roots=(SAMPLES, tmp_path / "speech"),
        broker_url="redis://127.0.0.1:1/0",
    )
    settings.data_dir.mkdir()
    engine = connect(settings.database)
    migrate(engine)
    engine.dispose()
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        yield Service(client, settings)


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    folder = SAMPLES / "speech" / "telephone"
    lines = (folder / "manifest.jsonl").read_text().splitlines()[:UTTERANCES]
    entries = [json.loads(line) for line in lines]
    speech = tmp_path / "speech"
    speech.mkdir()
    for entry in entries:
        entry["audio_filepath"] = str(folder / entry["audio_filepath"])
    (speech / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    dataset = {"name": "telephone", "uri": speech.as_uri(), "group": "in_domain"}
    return {"datasets": [dataset], "language": "pt", "num_beams": 1}


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
