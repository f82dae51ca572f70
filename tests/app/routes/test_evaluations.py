from __future__ import annotations

import csv
import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import jiwer
import pytest
import yaml
from fastapi.testclient import TestClient
from huggingface_hub import eval_result_entries_to_yaml, parse_eval_result_entries
from sqlalchemy import select, update

from app.contract.evaluation import EvaluationSpec
from app.services.backend import Backend
from app.services.wer import scored_report
from app.sources.manifests import read_manifest
from app.storage import evaluations, tables
from app.storage.database import writing
from app.storage.leases import JobKind, Lease
from tests.app.routes.conftest import end, take
from tests.app.routes.test_create_merge import refusal

DIGEST = "a" * 64
REFERENCES = ("o rio corre", "para o mar", "e volta", "sempre")


@pytest.fixture
def spec(models: Path) -> dict[str, Any]:
    lines = [{"audio_filepath": "a.wav", "text": text} for text in REFERENCES]
    (models / "a.wav").write_bytes(b"RIFF\x24\0\0\0WAVE")
    (models / "set.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return {
        "datasets": [{"name": "set", "uri": f"file://{models}/set.jsonl", "group": "in_domain"}],
        "language": "pt",
    }


def result(
    hypotheses: tuple[str, ...], *, num_beams: int = 5, skipped: int = 0, group: str = "in_domain"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what a worker stores of one system on one dataset."""
    utterances = [
        {
            "index": index, "audio": f"{index}.wav", "reference": reference,
            "hypothesis": hypothesis, "audio_seconds": 2.0, "decode_seconds": 0.5,
            "speaker": f"spk{index % 2}",
        }
        for index, (reference, hypothesis) in enumerate(zip(REFERENCES, hypotheses, strict=False))
    ]  # fmt: skip
    document = {
        "name": "set",
        "group": group,
        "normalizer": "basic",
        "result": {
            "skipped": [{"index": 9, "audio": "x", "reason": "unreadable"}] * skipped,
            "decoding": {
                "num_beams": num_beams, "language": "pt", "task": "transcribe", "dtype": "float32",
            },
            "language": "pt",
            "manifest_sha256": DIGEST,
        },
    }  # fmt: skip
    return document, utterances


def store(backend: Backend, lease: Lease, system: str, position: int, stored: Any) -> None:
    with writing(backend.engine) as connection:
        evaluations.save_result(
            connection, lease.id, system=system, dataset="set", position=position,
            result=stored[0], utterances=stored[1],
        )  # fmt: skip


PERFECT = REFERENCES
WORSE = ("o rio core", "para mar", "e volta", "sempre sempre")


def evaluate(
    client: TestClient, backend: Backend, merge_id: str, spec: Any, systems: dict[str, Any]
) -> str:
    evaluation_id = client.post(f"/merges/{merge_id}/evaluations", json=spec).json()["id"]
    lease = take(backend.engine, evaluation_id, JobKind.EVALUATION)
    for position, (system, stored) in enumerate(systems.items()):
        store(backend, lease, system, position, stored)
    end(backend.engine, lease, "succeeded")
    return str(evaluation_id)


def test_an_evaluation_is_queued_listed_shown_and_cancelled(
    client: TestClient, finished: str, spec: dict[str, Any]
):
    answer = client.post(f"/merges/{finished}/evaluations", json=spec)
    assert answer.status_code == 202
    evaluation = answer.json()
    url = answer.headers["location"]
    assert url == evaluation["links"]["self"]
    assert client.get(url).json() == evaluation
    assert client.get(f"/merges/{finished}/evaluations").json()["data"] == [evaluation]
    assert evaluation["spec"]["num_beams"] == 5
    summary = client.get(f"/merges/{finished}").json()["evaluation"]
    assert (summary["status"], summary["id"]) == ("queued", evaluation["id"])
    for _ in range(2):
        cancelled = client.post(f"{url}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert client.get(f"/merges/{finished}").json()["status"] == "succeeded"


def test_a_preset_is_shown_as_the_fields_it_stands_for(
    client: TestClient, finished: str, spec: dict[str, Any]
):
    asked = spec | {"preset": "open_asr", "voice_activity": True}
    answer = client.post(f"/merges/{finished}/evaluations", json=asked)
    found = answer.json()["spec"]
    assert found.items() >= {"normalizer": "open_asr", "num_beams": 1, "language": "pt"}.items()
    assert (found["voice_activity"], "preset" in found) == (True, False)
    url = f"/merges/{finished}/evaluations"
    refusal(client.post(url, json=spec | {"preset": "esb"}), 422, "invalid_request")


def test_thousands_of_evaluations_come_in_pages(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    asked = EvaluationSpec.model_validate(spec).model_dump(mode="json")
    with writing(backend.engine) as connection:
        made = [evaluations.create(connection, finished, asked) for _ in range(250)]
    url = f"/merges/{finished}/evaluations"
    seen: list[str] = []
    token: str | None = None
    while token is not None or not seen:
        query = {"page_size": 100} | ({"page_token": token} if token else {})
        answer = client.get(url, params=query)
        seen += [evaluation["id"] for evaluation in answer.json()["data"]]
        token = answer.json()["next_page_token"]
    assert len(seen) == len(made)
    assert set(seen) == set(made)
    first = client.get(url)
    assert [evaluation["id"] for evaluation in first.json()["data"]] == seen[:20]
    merge = client.get(f"/merges/{finished}")
    assert merge.json()["evaluation"]["id"] == seen[0]
    assert len(merge.content) < 5_000
    assert client.get("/merges").json()["data"][0] == merge.json()
    for wrong in ({"page_token": "x"}, {"page_size": 101}, {"page_size": 0}):
        refusal(client.get(url, params=wrong), 422, "invalid_request")


def test_an_evaluation_that_ended_cannot_be_cancelled(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    evaluation_id = evaluate(client, backend, finished, spec, {"merge": result(PERFECT)})
    answer = client.post(f"/merges/{finished}/evaluations/{evaluation_id}/cancel")
    refusal(answer, 409, "conflict")


def test_the_key_makes_one_evaluation(client: TestClient, finished: str, spec: dict[str, Any]):
    headers = {"Idempotency-Key": "e"}
    url = f"/merges/{finished}/evaluations"
    answers = [client.post(url, json=spec, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 200]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    refusal(
        client.post(url, json={**spec, "num_beams": 1}, headers=headers),
        422,
        "idempotency_mismatch",
    )


def test_only_a_finished_merge_is_evaluated(
    client: TestClient, merge_id: str, spec: dict[str, Any]
):
    answer = client.post(f"/merges/{merge_id}/evaluations", json=spec)
    refusal(answer, 409, "conflict")


def test_all_problems_with_an_evaluation_are_reported_at_once(
    client: TestClient, finished: str, spec: dict[str, Any], models: Path
):
    url = f"/merges/{finished}/evaluations"
    answer = client.post(url, json={**spec, "num_beans": 3, "normalizer": "klingon"})
    document = refusal(answer, 422, "invalid_request")
    assert {error["param"] for error in document["errors"]} == {"num_beans", "normalizer"}
    assert 'Did you mean "num_beams"?' in str(document)
    spec["datasets"].append({"name": "b", "uri": "file:///etc/passwd"})
    spec["datasets"].append({"name": "c", "uri": f"file://{models}/none.jsonl"})
    document = refusal(client.post(url, json=spec), 422, "source_not_allowed")
    assert [e["param"] for e in document["errors"]] == ["datasets[1].uri", "datasets[2].uri"]


def test_a_dataset_may_be_the_folder_of_its_manifest(
    client: TestClient, finished: str, spec: dict[str, Any], models: Path
):
    for name, files in {
        "kaldi": {"wav.scp": "a a.wav\n", "text": "a olá\n"},
        "hub": {"metadata.csv": "file_name,text\na.wav,olá\n"},
    }.items():
        (models / name).mkdir()
        (models / name / "a.wav").write_bytes(b"RIFF\x24\0\0\0WAVE")
        for file, content in files.items():
            (models / name / file).write_text(content)
        dataset = {"name": name, "uri": f"file://{models}/{name}"}
        answer = client.post(f"/merges/{finished}/evaluations", json=spec | {"datasets": [dataset]})
        assert answer.status_code == 202, answer.text


def test_an_evaluation_belongs_to_its_merge(
    client: TestClient, finished: str, spec: dict[str, Any], recipe: dict[str, Any]
):
    evaluation_id = client.post(f"/merges/{finished}/evaluations", json=spec).json()["id"]
    other = client.post("/merges", json=recipe).json()["id"]
    refusal(client.get(f"/merges/{other}/evaluations/{evaluation_id}"), 404, "not_found")
    refusal(client.get(f"/merges/{other}/wer?evaluation={evaluation_id}"), 404, "not_found")


def test_error_rates_are_available_at_once(client: TestClient, merge_id: str):
    document = client.get(f"/merges/{merge_id}/wer").json()
    assert (document["merge_id"], document["status"]) == (merge_id, "none")
    assert document["datasets"] == []
    assert client.get(f"/merges/{merge_id}/wer/utterances").json()["data"] == []


def test_error_rates_of_all_systems(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    systems = {"merge": result(PERFECT), "two": result(WORSE), "base": result(WORSE)}
    evaluate(client, backend, finished, spec, systems)
    document = client.get(f"/merges/{finished}/wer").json()
    assert document["status"] == "succeeded"
    [dataset] = document["datasets"]
    assert (dataset["wer"], dataset["reference_words"], dataset["utterances"]) == (0.0, 9, 4)
    assert dataset["compared_with"]["base"]["wer"] == pytest.approx(3 / 9)
    assert list(document["systems"]) == ["base", "two"]
    assert document["averages"]["in_domain"]["macro"] == 0.0
    rows = list(csv.DictReader(io.StringIO(client.get(f"/merges/{finished}/wer?format=csv").text)))
    assert {row["system"] for row in rows} == {"merge", "base", "two"}


def test_references_are_named_apart_and_must_be_there(client, finished, spec, models):
    url = f"/merges/{finished}/evaluations"

    def refused(name: str, folder: str) -> dict[str, Any]:
        references = [{"name": name, "uri": f"file://{models}/{folder}"}]
        answer = client.post(url, json=spec | {"references": references})
        assert answer.status_code == 422
        (problem,) = answer.json()["errors"]
        return problem

    assert refused("base", "two")["param"] == "references[0].name"
    assert refused("one", "two")["param"] == "references[0].name"
    assert refused("full", "gone")["param"] == "references[0].uri"
    references = [{"name": "full", "uri": f"file://{models}/two"}]
    assert client.post(url, json=spec | {"references": references}).status_code == 202


def test_another_merge_is_compared_with(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    unknown = spec | {"compare_with": ["merge://mrg_01ARZ3NDEKTSV4RRFFQ69G5FAV"]}
    answer = client.post(f"/merges/{finished}/evaluations", json=unknown)
    assert "the merge does not exist" in refusal(answer, 422, "invalid_request")["detail"]
    spec |= {"compare_with": [f"merge://{finished}"]}
    stored = {"merge": result(PERFECT), finished: result(WORSE, num_beams=1)}
    evaluate(client, backend, finished, spec, stored)
    [dataset] = client.get(f"/merges/{finished}/wer").json()["datasets"]
    assert (dataset["compared_with"], dataset["not_compared_with"]) == (
        {},
        {finished: "it was decoded with num_beams 1 instead of 5"},
    )
    evaluate(client, backend, finished, spec, {finished: result(WORSE)})
    [dataset] = client.get(f"/merges/{finished}/wer").json()["datasets"]
    difference = dataset["compared_with"][finished]
    assert (difference["wer"], difference["delta"]) == pytest.approx((3 / 9, -3 / 9))
    assert difference["segments"] == 3
    assert difference["probability_of_improvement"] == 1.0
    assert dataset["ci95"]["unit"] == "speaker"


def test_the_newest_result_that_succeeded_counts(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    first = evaluate(client, backend, finished, spec, {"merge": result(WORSE)})
    evaluate(client, backend, finished, spec, {"merge": result(PERFECT)})
    evaluate(client, backend, finished, spec, {"merge": result(WORSE, skipped=1)})
    evaluate(client, backend, finished, spec, {"merge": result((), skipped=4)})
    evaluate(client, backend, finished, spec, {"merge": result(WORSE, num_beams=1)})

    def rates(query: str = "") -> list[tuple[int, float]]:
        datasets = client.get(f"/merges/{finished}/wer{query}").json()["datasets"]
        return [(dataset["decoding"]["num_beams"], dataset["wer"]) for dataset in datasets]

    assert rates() == [(5, 0.0), (1, pytest.approx(3 / 9))]
    assert rates(f"?evaluation={first}") == [(5, pytest.approx(3 / 9))]


def test_another_normaliser_scores_again(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    shouted = tuple(text.upper() for text in REFERENCES)
    evaluate(client, backend, finished, spec, {"merge": result(shouted)})
    url = f"/merges/{finished}/wer"
    assert client.get(url).json()["datasets"][0]["wer"] == 0.0
    document = client.get(f"{url}?normalizer=none").json()
    assert document["datasets"][0]["wer"] == 1.0
    assert document["datasets"][0]["normalizer"]["name"] == "none"
    refusal(client.get(f"{url}?normalizer=x"), 422, "invalid_request")
    refusal(client.get(f"{url}?format=xml"), 422, "invalid_request")


def test_utterances_come_in_pages_with_their_alignment(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    evaluate(client, backend, finished, spec, {"merge": result(WORSE), "base": result(PERFECT)})
    url = f"/merges/{finished}/wer/utterances"
    found, token = [], None
    while True:
        query = {"page_size": 3} | ({"page_token": token} if token else {})
        page = client.get(url, params=query).json()
        found += page["data"]
        token = page["next_page_token"]
        if token is None:
            break
    assert [entry["reference"] for entry in found] == list(REFERENCES)
    assert [entry["wer"] for entry in found] == pytest.approx([1 / 3, 1 / 3, 0, 1])
    assert found[0]["alignment"] == [
        {"type": "equal", "reference": "o rio", "hypothesis": "o rio"},
        {"type": "substitute", "reference": "corre", "hypothesis": "core"},
    ]
    assert found[3]["alignment"][1]["type"] == "insert"
    base = client.get(f"{url}?system=base&dataset=set").json()["data"]
    assert {entry["wer"] for entry in base} == {0.0}
    document = refusal(client.get(f"{url}?system=bass"), 404, "not_found")
    assert "base" in document["detail"]
    refusal(client.get(f"{url}?dataset=x"), 404, "not_found")
    refusal(client.get(f"{url}?page_token=x"), 422, "invalid_request")


def test_utterances_as_lines_and_as_trn(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    evaluate(client, backend, finished, spec, {"merge": result(WORSE)})
    url = f"/merges/{finished}/wer/utterances"
    lines = client.get(f"{url}?format=jsonl").text.splitlines()
    assert [json.loads(line)["hypothesis"] for line in lines] == list(WORSE)
    trn = client.get(f"{url}?format=trn").text.splitlines()
    assert trn[0] == "o rio core (spk0-set_000000)"
    reference = client.get(f"{url}?format=trn&side=reference").text.splitlines()
    assert reference[1] == "para o mar (spk1-set_000001)"


def test_utterances_are_what_other_tools_read(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any], tmp_path: Path
):
    document, utterances = result(WORSE)
    utterances[1] |= {"offset_seconds": 3.5, "channel": 1, "audio": "b c/x (1).flac"}
    utterances[3] |= {"speaker": None, "language": "pt"}
    evaluate(client, backend, finished, spec, {"merge": (document, utterances)})
    url = f"/merges/{finished}/wer/utterances"

    nemo = tmp_path / "manifest.jsonl"
    nemo.write_text(client.get(f"{url}?format=nemo").text)
    lines = [json.loads(line) for line in nemo.read_text().splitlines()]
    texts = ([line["text"] for line in lines], [line["pred_text"] for line in lines])
    assert jiwer.process_words(*texts).wer == pytest.approx(3 / 9)
    read = read_manifest(nemo, label="nemo").utterances
    assert [one.reference for one in read] == list(REFERENCES)
    assert (read[1].offset_seconds, read[1].duration_seconds, read[1].channel) == (3.5, 2.0, 1)
    assert (read[2].speaker, read[3].speaker, read[3].language) == ("spk0", None, "pt")

    for name in ("0.wav", "2.wav"):
        (tmp_path / name).touch()
    stm = client.get(f"{url}?format=stm&side=reference").text.splitlines()
    assert stm[1] == "b_c/x_1 2 spk1 3.500 5.500 para o mar"
    assert stm[3] == "3 1 set 0.000 2.000 sempre"
    (tmp_path / "set.stm").write_text("\n".join((stm[0], stm[2])))
    read = read_manifest(tmp_path / "set.stm", label="stm").utterances
    assert [(one.audio, one.reference) for one in read] == [
        ("0.wav", REFERENCES[0]),
        ("2.wav", REFERENCES[2]),
    ]

    segments = client.get(f"{url}?format=seglst").json()
    keys = {"session_id", "start_time", "end_time", "words", "speaker"}
    assert all(segment.keys() == keys for segment in segments)
    assert segments[1] == {
        "session_id": "b_c/x_1",
        "start_time": 3.5,
        "end_time": 5.5,
        "words": "para mar",
        "speaker": "spk1",
    }
    raw = client.get(f"{url}?format=seglst&side=reference&normalizer=none").json()
    assert [segment["words"] for segment in raw] == list(REFERENCES)
    refusal(client.get(f"{url}?format=ctm"), 422, "invalid_request")


def test_rates_on_datasets_of_the_hub_are_what_the_hub_reads(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    evaluate(client, backend, finished, spec, {"merge": result(WORSE, skipped=1)})
    url = f"/merges/{finished}/wer?format=eval_results"
    assert "set" in refusal(client.get(url), 404, "not_found")["detail"]
    commit = "5503434ddd753f426f4b38109466949a1217c2bb"
    uri = f"hf://datasets/org/speech@{commit}?config=pt&split=test"
    with writing(backend.engine) as connection:
        row = connection.execute(select(tables.evaluations.c.spec)).scalar_one()
        on_hub = {**row, "datasets": [{**row["datasets"][0], "uri": uri}]}
        connection.execute(update(tables.evaluations).values(spec=on_hub))
    answer = client.get(url)
    assert answer.headers["content-type"] == "application/yaml"
    document = yaml.safe_load(answer.text)
    [entry] = parse_eval_result_entries(document)
    assert eval_result_entries_to_yaml([entry]) == document
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("org/speech", "pt", commit)
    assert entry.value == 33.33
    assert date.fromisoformat(entry.date)
    assert entry.notes == (
        "WER in percent, split test, normaliser basic, 5 beams, float32, 1 utterances skipped"
    )


def test_the_model_card_is_what_the_hub_reads(
    client: TestClient, backend: Backend, recipe: dict[str, Any], spec: dict[str, Any]
):
    from tests.app.routes.conftest import succeed

    name = "three\n# domains | `x`"
    merge_id = client.post("/merges", json={**recipe, "name": name}).json()["id"]
    assert "The merge is queued." in client.get(f"/merges/{merge_id}/model-card").text
    succeed(backend.engine, backend.store, merge_id)
    systems = {"merge": result(PERFECT), "base": result(WORSE)}
    evaluate(client, backend, merge_id, spec, systems)
    answer = client.get(f"/merges/{merge_id}/model-card")
    assert answer.headers["content-type"].startswith("text/markdown")
    _, front, body = answer.text.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "transformers"
    assert data["language"] == ["pt"]
    assert data["model-index"][0]["results"][0]["metrics"] == [{"type": "wer", "value": 0.0}]
    assert "# three \\# domains \\| \\`x\\`" in body
    assert "| set | in_domain | WER | 0.00 | 33.33 |" in body
    assert "| macro average: in_domain |  |  | 0.00 | 33.33 |" in body
    assert '"scaling_coefficient": 0.4' in body
    assert "https://arxiv.org/abs/2212.04089" in body


def test_the_model_card_leaves_out_what_is_not_comparable(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    systems = {"merge": result(WORSE), "base": result(PERFECT, num_beams=1), "two": result(WORSE)}
    evaluate(client, backend, finished, spec, systems)
    card = client.get(f"/merges/{finished}/model-card").text
    assert "| set | in_domain | WER | 33.33 |  | 33.33 |" in card
    assert "| macro average: in_domain |  |  | 33.33 |  | 33.33 |" in card


def test_computed_rates_are_cached_until_results_change(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    evaluate(client, backend, finished, spec, {"merge": result(WORSE), "base": result(WORSE)})
    _, scored = scored_report(backend, finished)
    assert scored_report(backend, finished)[1] is scored
    assert scored_report(backend, finished, normalizer="none")[1] is not scored
    shown = client.get(f"/merges/{finished}/wer").json()
    evaluate(client, backend, finished, spec, {"merge": result(PERFECT)})
    assert scored_report(backend, finished)[1] is not scored
    now = client.get(f"/merges/{finished}/wer").json()
    assert now["datasets"][0]["wer"] < shown["datasets"][0]["wer"]


def test_endless_and_hostile_texts_never_end_a_report(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    texts = ("[" * 40_000, "1" * 5_000, "um " * 40_000, "\ufdfa" * 6_000, "( <", "\u0301" * 9_000)
    document, utterances = result(WORSE)
    utterances += [
        utterances[0] | {"index": index, "reference": text, "hypothesis": f"{text[::-1]} x"}
        for index, text in enumerate(texts, start=len(utterances))
    ]
    found = (document, utterances)
    evaluate(client, backend, finished, spec, {"merge": found, "base": found})
    for normalizer in ("portuguese", "open_asr"):
        for form in ("json", "html", "csv"):
            url = f"/merges/{finished}/wer?normalizer={normalizer}&format={form}"
            assert client.get(url).status_code == 200
    [dataset] = client.get(f"/merges/{finished}/wer?normalizer=portuguese").json()["datasets"]
    assert dataset["status"] == "partial"
    reasons = {one["index"]: one["reason"] for one in dataset["warnings"]["skipped"]}
    assert reasons[6] == "its reference has over 100000 characters to compare"
    assert client.get(f"/merges/{finished}/wer/utterances?page_size=2").status_code == 200
