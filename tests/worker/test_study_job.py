"""Studies: the API's requests with the worker's real work, on the sample checkpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from fastapi.testclient import TestClient

from app.contract.errors import ConflictError
from app.contract.settings import Settings
from app.main import create_app
from app.storage.database import connect, migrate, writing
from app.storage.leases import JobKind, abandon, recover
from app.storage.tables import merges as merges_table
from app.storage.tables import studies as studies_table
from worker.attempts import Attempt, attempt_job
from worker.evaluation_job import do_evaluation
from worker.merge_job import do_merge
from worker.studies import pieces, shipping
from worker.study_job import do_study
from worker.study_local import run_study

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
UTTERANCES = 6
WORKS = {
    JobKind.MERGE: do_merge,
    JobKind.EVALUATION: do_evaluation,
    JobKind.STUDY: do_study,
}


class Service:
    """The API over a database, and a worker that does what is queued when it is told to."""

    def __init__(self, client: TestClient, settings: Settings) -> None:
        self.client, self.settings = client, settings

    def work(self, kind: JobKind, job_id: str) -> None:
        attempt_job(kind, job_id, self.settings, "wrk_test", WORKS)

    def study(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post("/studies", json=body)
        assert answer.status_code == 202, answer.text
        return self.go_on(answer.json()["id"])

    def go_on(self, study_id: str) -> dict[str, Any]:
        self.work(JobKind.STUDY, study_id)
        found: dict[str, Any] = self.client.get(f"/studies/{study_id}").json()
        assert found["status"] == "succeeded", found["error"]
        return found

    def trials(self, study: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get(study["links"]["trials"]).json()["data"]
        return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("studies")
    settings = Settings(
        data_dir=folder / "data",
        device="cpu",
        file_roots=(folder,),
        broker_url="redis://127.0.0.1:1/0",
    )
    settings.data_dir.mkdir()
    engine = connect(settings.database)
    migrate(engine)
    engine.dispose()
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        yield Service(client, settings)


@pytest.fixture
def manifests(service: Service) -> Path:
    """The first utterances of two sample sets' development and test manifests."""
    folder = service.settings.data_dir.parent / "manifests"
    if not folder.exists():
        folder.mkdir()
        for name in ("telephone", "fast"):
            for part in ("dev", "test"):
                write(folder / f"{name}-{part}.jsonl", lines_of(name, part))
    return folder


def lines_of(name: str, part: str) -> list[dict[str, Any]]:
    speech = SAMPLES / "speech" / name
    text = (speech / f"{part}.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()[:UTTERANCES]]
    return [{**one, "audio_filepath": str(speech / one["audio_filepath"])} for one in entries]


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in entries), encoding="utf-8")


@pytest.fixture
def body(manifests: Path) -> dict[str, Any]:
    def measured(part: str) -> dict[str, Any]:
        sets = [
            {"name": name, "uri": (manifests / f"{name}-{part}.jsonl").as_uri(), "group": group}
            for name, group in (("telephone", "in_domain"), ("fast", "in_domain"))
        ]
        return {"datasets": sets, "language": "pt", "num_beams": 1}

    models = SAMPLES / "checkpoints"
    return {
        "name": "two domains",
        "base": (models / "base").as_uri(),
        "checkpoints": [(models / name).as_uri() for name in ("telephone", "fast")],
        "candidates": [
            {"method": "soup"},
            {
                "method": "task_arithmetic",
                "parameters": {"scaling_coefficient": {"low": 0.2, "high": 1.0}},
            },
        ],
        "search": {"trials": 4, "seed": 1, "batch": 2},
        "development": measured("dev"),
        "test": measured("test"),
        "keep": 2,
    }


@pytest.fixture(scope="module")
def finished(service: Service) -> dict[str, dict[str, Any]]:
    """A study that has succeeded, made when it is first needed."""
    return {}


@pytest.fixture
def study(
    service: Service, body: dict[str, Any], finished: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    if not finished:
        finished["study"] = service.study(body)
    return finished["study"]


def test_a_study_ships_the_best_trial_as_a_merge_measured_on_the_test_sets(service, study):
    trials = service.trials(study)
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    complete = [trial for trial in trials if trial["status"] == "complete"]
    best = min(complete, key=lambda trial: (trial["objectives"], trial["number"]))
    outcome = study["outcome"]
    assert outcome["winner"] == best["number"]
    assert outcome["shipped"] == best["merge_id"]
    assert outcome["kept"][0]["trial"] == best["number"]
    assert len(outcome["kept"]) == 2
    wer = service.client.get(f"/merges/{outcome['shipped']}/wer").json()
    others = {one["merge_id"] for one in outcome["kept"]} - {outcome["shipped"]}
    assert set(wer["systems"]) == {"base", "telephone", "fast", *others}


def test_a_kept_merge_is_to_the_byte_that_of_its_recipe(service, study):
    trial = service.trials(study)[study["outcome"]["winner"]]
    merge_id = service.client.post("/merges", json=trial["recipe"]).json()["id"]
    service.work(JobKind.MERGE, merge_id)
    mine, kept = (
        {
            file["name"]: file["sha256"]
            for file in service.client.get(f"/merges/{one}").json()["artifacts"]
        }
        for one in (merge_id, trial["merge_id"])
    )
    assert mine == kept


def test_a_trial_is_transcribed_as_its_merge_is(service, study, body):
    trial = service.trials(study)[study["outcome"]["winner"]]
    spec = {**body["development"], "compare_with": []}
    answer = service.client.post(f"/merges/{trial['merge_id']}/evaluations", json=spec)
    service.work(JobKind.EVALUATION, answer.json()["id"])
    query = f"?evaluation={answer.json()['id']}"
    wer = service.client.get(f"/merges/{trial['merge_id']}/wer{query}").json()
    counted = {one["name"]: one for one in wer["datasets"]}
    for name, found in trial["sets"].items():
        errors = sum(counted[name][kind] for kind in ("substitutions", "deletions", "insertions"))
        assert (found["errors"], found["words"]) == (errors, counted[name]["reference_words"])
    assert trial["objectives"][0] == pytest.approx(wer["averages"]["in_domain"]["macro"])


def test_the_table_has_every_system_in_every_form(service, study):
    table = service.client.get(study["links"]["table"]).json()
    keys = [row["key"] for row in table["development"]["rows"]]
    assert keys[:3] == ["base", "telephone", "fast"]
    assert set(keys[3:]) == {"#0", "#1", "#2", "#3"}
    tested = {row["key"] for row in table["test"]["rows"]}
    assert tested == {"base", "telephone", "fast"} | {
        f"#{one['trial']}" for one in study["outcome"]["kept"]
    }
    for form in ("csv", "markdown", "latex", "html"):
        answer = service.client.get(study["links"]["table"], params={"format": form})
        assert answer.status_code == 200
        assert "task" in answer.text
    page = service.client.get(study["links"]["self"], headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert study["outcome"]["shipped"] in page.text


def test_the_same_study_again_decodes_nothing_and_finds_the_same(service, study, body):
    again = service.study({**body, "name": "again"})
    assert [t["objectives"] for t in service.trials(again)] == [
        t["objectives"] for t in service.trials(study)
    ]
    table = service.client.get(again["links"]["table"]).json()
    assert table["development"]["rows"] == [
        {**row, "merge_id": there["merge_id"]}
        for row, there in zip(
            service.client.get(study["links"]["table"]).json()["development"]["rows"],
            table["development"]["rows"],
            strict=True,
        )
    ]


def test_extending_a_study_goes_on_where_it_was(service, study, body):
    short = service.study({**body, "name": "short", "search": {**body["search"], "trials": 2}})
    refused = service.client.post(f"{short['links']['extend']}", json={"trials": 2})
    assert refused.status_code == 422
    for one in short["outcome"]["kept"]:  # what is needed of them is made again
        assert service.client.delete(f"/merges/{one['merge_id']}").status_code == 204
    assert service.client.post(short["links"]["extend"], json={"trials": 4}).status_code == 202
    longer = service.go_on(short["id"])
    assert [t["values"] for t in service.trials(longer)] == [
        t["values"] for t in service.trials(study)
    ]
    assert longer["outcome"]["winner"] == study["outcome"]["winner"]


def test_a_study_that_is_extended_while_it_tests_goes_on_before_it_ends(
    service, study, body, monkeypatch
):
    answer = service.client.post(
        "/studies", json={**body, "search": {**body["search"], "trials": 2}}
    )
    links, evaluated = answer.json()["links"], []

    def extending(attempt: Attempt) -> None:
        if not evaluated:
            service.client.post(links["extend"], json={"trials": 4})
        evaluated.append(attempt.lease.id)
        do_evaluation(attempt)

    monkeypatch.setattr(shipping, "do_evaluation", extending)
    longer = service.go_on(answer.json()["id"])
    assert longer["budget"]["trials_used"] == 4
    assert longer["outcome"]["winner"] == study["outcome"]["winner"]
    assert {one["evaluation_id"] for one in longer["outcome"]["kept"]} <= set(evaluated)


def test_a_worker_that_takes_over_while_merges_are_tested_makes_no_second_tests(
    service, body, monkeypatch
):
    lost = []

    def dying(attempt: Attempt) -> None:
        lost.append(attempt.lease.id)
        raise SystemExit

    study_id = service.client.post("/studies", json=body).json()["id"]
    with monkeypatch.context() as patch:
        patch.setattr(shipping, "do_evaluation", dying)
        with pytest.raises(SystemExit):
            service.work(JobKind.STUDY, study_id)
    engine = connect(service.settings.database)
    abandon(engine, "")
    recover(engine, 5, {}, {})
    engine.dispose()
    found = service.go_on(study_id)
    assert found["outcome"]["kept"][0]["evaluation_id"] == lost[0]


def test_constraints_that_nothing_meets_ship_nothing_and_say_which(service, body):
    limits = [{"set": "fast", "max_wer": 0.0}]
    found = service.study({**body, "constraints": limits, "name": "impossible"})
    assert found["outcome"]["shipped"] is None
    assert found["outcome"]["kept"] == []
    assert "cannot meet the constraint on fast" in found["outcome"]["reason"]
    for trial in service.trials(found):
        assert trial["status"] == "stopped"
        assert "cannot meet the constraint on fast" in trial["reason"]


def test_utterances_without_words_are_no_reason_to_stop(service, body, manifests):
    """Whichever are decoded first."""
    entries = lines_of("fast", "dev")
    silent = [{**one, "text": ""} for one in entries[:-1]]
    sets = []
    for name, lines in (("quiet", [*silent, entries[-1]]), ("silent", silent)):
        write(manifests / f"{name}.jsonl", lines)
        sets.append({"name": name, "uri": (manifests / f"{name}.jsonl").as_uri()})
    request = {**body, "candidates": [{"method": "soup"}], "test": None, "name": "quiet"}
    request["development"] = {"datasets": sets[:1], "language": "pt"}
    found = service.study(request)
    assert service.trials(found)[0]["sets"]["quiet"]["utterances"] == UTTERANCES
    # Where nothing can be rated, the study says so before it tries anything.
    request["development"] = {"datasets": sets[1:], "language": "pt"}
    study_id = service.client.post("/studies", json=request).json()["id"]
    service.work(JobKind.STUDY, study_id)
    found = service.client.get(f"/studies/{study_id}").json()
    assert "no reference words" in found["error"]["message"]
    assert service.trials(found) == []


def test_a_gate_that_refuses_the_winner_ships_nothing_and_says_why(service, body):
    found = service.study({**body, "gate": {"max_wer": {"fast": 0.0}}, "name": "gate"})
    assert found["outcome"]["shipped"] is None
    assert "does not pass the gate" in found["outcome"]["reason"]
    assert found["outcome"]["winner"] is not None


def test_a_grid_without_sets_is_a_sweep(service, body):
    points = [{"method": "task_arithmetic", "parameters": {"scaling_coefficient": [0.3, 0.6]}}]
    request = {
        "base": body["base"],
        "checkpoints": body["checkpoints"],
        "candidates": points,
        "search": {"strategy": "grid"},
    }
    found = service.study(request)
    assert found["outcome"]["shipped"] is None
    lambdas = [
        service.client.get(f"/merges/{one['merge_id']}").json()["parameters"]
        for one in found["outcome"]["kept"]
    ]
    assert [one["scaling_coefficient"] for one in lambdas] == [0.3, 0.6]


def test_a_point_that_cannot_be_merged_fails_alone(service, body):
    huge = {"method": "task_arithmetic", "parameters": {"scaling_coefficient": [1e9, 1e10]}}
    request = {**body, "candidates": [{"method": "soup"}, huge], "output": {"dtype": "float16"}}
    found = service.study({**request, "name": "huge", "keep": 1})
    statuses = [trial["status"] for trial in service.trials(found)]
    assert statuses == ["complete", "failed", "failed"]
    assert "does not fit F16" in service.trials(found)[1]["reason"]
    assert found["outcome"]["winner"] == 0


def test_an_expert_that_vanishes_fails_the_study_and_no_trial(service, body, tmp_path, monkeypatch):
    folder, away = service.settings.data_dir.parent / "expert", tmp_path / "away"
    shutil.copytree(SAMPLES / "checkpoints" / "fast", folder)
    experts = [body["checkpoints"][0], folder.as_uri()]
    answer = service.client.post("/studies", json={**body, "checkpoints": experts, "test": None})
    study_id, decode = answer.json()["id"], pieces._decode

    def vanishing(attempt: Attempt, decoder: Any, piece: Any) -> Any:
        if piece.system.startswith("#") and folder.exists():
            folder.rename(away)
        return decode(attempt, decoder, piece)

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "_decode", vanishing)
        service.work(JobKind.STUDY, study_id)
    found = service.client.get(f"/studies/{study_id}").json()
    assert "model.safetensors" in found["error"]["message"]
    assert "failed" not in {trial["status"] for trial in service.trials(found)}
    away.rename(folder)
    service.client.post(found["links"]["extend"], json={"trials": 5})
    found = service.go_on(study_id)
    assert "failed" not in {trial["status"] for trial in service.trials(found)}


def test_a_recording_in_both_kinds_of_sets_is_refused_under_any_name(
    service, body, manifests, tmp_path
):
    entries = lines_of("telephone", "dev")
    folder = service.settings.data_dir.parent / "shared"
    folder.mkdir()
    copy = shutil.copy(entries[2]["audio_filepath"], folder / "innocent.flac")
    write(folder / "test.jsonl", [{**entries[2], "audio_filepath": str(copy), "duration": 9.0}])
    test = {**body["test"]}
    test["datasets"] = [{"name": "other", "uri": (folder / "test.jsonl").as_uri()}]
    answer = service.client.post("/studies", json={**body, "test": test})
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert "innocent.flac" in problem["message"]
    assert Path(entries[2]["audio_filepath"]).name in problem["message"]
    # The same samples in another format have other bytes; a worker finds them.
    samples, rate = soundfile.read(copy, dtype="int16")
    soundfile.write(folder / "innocent.wav", samples, rate)
    write(
        folder / "test.jsonl",
        [{**entries[2], "audio_filepath": str(folder / "innocent.wav")}],
    )
    study_id = service.client.post("/studies", json={**body, "test": test}).json()["id"]
    service.work(JobKind.STUDY, study_id)
    error = service.client.get(f"/studies/{study_id}").json()["error"]
    assert error["code"] == "invalid_manifest"
    assert "innocent.wav" in error["message"]


def test_the_dry_run_says_what_would_be_decoded_and_queues_nothing(service, body):
    before = service.client.get("/studies").json()["data"]
    plan = service.client.post("/studies?dry_run=true", json=body).json()
    assert plan["trials"] == 4
    assert plan["development"]["utterances"] == 2 * UTTERANCES
    assert plan["development"]["most_utterances_decoded"] == 2 * UTTERANCES * (4 + 3)
    assert service.client.get("/studies").json()["data"] == before


def test_an_ended_study_can_be_deleted_and_its_merges_stay(service, body):
    found = service.study({**body, "keep": 1, "name": "short-lived"})
    assert service.client.delete(found["links"]["self"]).status_code == 204
    assert service.client.get(found["links"]["self"]).status_code == 404
    assert service.client.get(found["links"]["events"]).status_code == 404
    shipped = service.client.get(f"/merges/{found['outcome']['shipped']}")
    assert shipped.json()["status"] == "succeeded"
    assert shipped.json()["metadata"]["study"] == found["id"]


def test_in_process_a_study_killed_while_merging_goes_on_when_it_is_repeated(
    service, body, tmp_path
):
    request = {**body, "keep": 1, "search": {**body["search"], "trials": 1}}

    def run() -> Any:
        return run_study(request, tmp_path, Settings(device="cpu"), lambda kind, data: None)

    first = run()
    assert {one.name for one in tmp_path.glob("table.*")} == {
        f"table.{form}" for form in ("json", "csv", "md", "tex", "html")
    }
    merge = tmp_path / "merges" / "trial-0"
    assert (merge / "recipe.json").exists()
    shutil.rmtree(merge)
    engine = connect(tmp_path / "data" / "afluente.db")
    code = "import worker.processes.owners as o; print(o.describe_process('local-1'), flush=True)"
    command = [sys.executable, "-c", f"{code}; input()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = {"status": "running", "crashes": 7, "lease_owner": process.stdout.readline().strip()}
        with writing(engine) as connection:
            connection.execute(studies_table.update().values(**left, lease_expires_at=2.0**33))
        with pytest.raises(ConflictError, match="Another process"):
            run()
        process.kill()
    with writing(engine) as connection:
        connection.execute(studies_table.update().values(**left))
        connection.execute(merges_table.update().values(**{**left, "crashes": 0}))
    engine.dispose()
    again = run()
    assert again.outcome == first.outcome
    assert (merge / "recipe.json").exists()
    with pytest.raises(ConflictError, match="another study"):
        run_study({**request, "seed": 5}, tmp_path, Settings(), lambda kind, data: None)


def test_a_queued_study_is_cancelled_at_once_and_an_ended_one_not(service, study, body):
    study_id = service.client.post("/studies", json=body).json()["id"]
    assert service.client.delete(f"/studies/{study_id}").status_code == 409
    assert service.client.post(f"/studies/{study_id}/cancel").json()["status"] == "cancelled"
    assert service.client.post(f"/studies/{study_id}/cancel").json()["status"] == "cancelled"
    assert service.client.post(study["links"]["cancel"]).status_code == 409


def test_candidates_that_need_calibration_sets_share_what_was_gathered(service, body, manifests):
    heard = [
        {"name": name, "uri": (manifests / f"{name}-dev.jsonl").as_uri(), "expert": name}
        for name in ("telephone", "fast")
    ]
    request = {
        **body,
        "candidates": [
            {"method": "regmean", "parameters": {"alpha": 0.5}},
            {"method": "soup"},
        ],
        "calibration": {"datasets": heard, "utterances": 2, "language": "pt"},
        "search": {"strategy": "grid", "racing": False},
        "keep": 1,
    }
    del request["test"]
    found = service.study(request)
    trials = service.trials(found)
    assert [trial["status"] for trial in trials] == ["complete"] * 2
    assert ["calibration" in trial["recipe"] for trial in trials] == [True, False]
    kept = list((service.settings.data_dir / "statistics").iterdir())
    assert len(kept) == 2
    shared = {**request, "test": body["development"]}
    answer = service.client.post("/studies", json=shared)
    assert answer.status_code == 422
    assert "Calibration and test sets must not share audio" in answer.text
    unused = {**request, "candidates": [{"method": "soup"}]}
    answer = service.client.post("/studies", json=unused)
    assert "No candidate uses the calibration sets" in answer.text


def test_references_are_measured_under_their_own_names(service, body):
    models = SAMPLES / "checkpoints"
    given = {"first": models / "base", "second": models / "fast"}
    references = [{"name": name, "uri": folder.as_uri()} for name, folder in given.items()]
    study = service.study(
        body | {"references": references, "candidates": [{"method": "soup"}], "keep": 1}
    )
    table = service.client.get(study["links"]["table"]).json()
    for part in ("development", "test"):
        keys = {row["key"] for row in table[part]["rows"]}
        assert keys == {"base", "telephone", "fast", *given, "#0"}
