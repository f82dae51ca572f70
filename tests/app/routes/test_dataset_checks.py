"""Audio and languages that would make an evaluation fail are reported before the merge."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from app.sources import arrow_tables
from app.sources.audio_files import container_of
from app.sources.dataset_checks import check_audio
from app.sources.manifests import read_manifest
from tests.app.routes.test_create_merge import refusal
from tests.app.sources.conftest import checkpoint_files, whisper_tensors

WAV = b"RIFF\x24\0\0\0WAVE"
Post = Callable[..., Any]
GENERATION = {"is_multilingual": True, "lang_to_id": {"<|en|>": 1, "<|no|>": 2, "<|tl|>": 3}}


def line(audio: str, **more: object) -> dict[str, object]:
    return {"audio_filepath": audio, "text": "olá", **more}


@pytest.fixture
def post(client: TestClient, recipe: dict[str, Any], models: Path) -> Post:
    """Return a function that writes a manifest and asks for a plan with an evaluation of it."""

    def ask(*lines: dict[str, object], dataset: dict[str, str] | None = None, **spec: str) -> Any:
        (models / "set.jsonl").write_text("\n".join(json.dumps(each) for each in lines))
        one = {"name": "set", "uri": f"file://{models}/set.jsonl", **(dataset or {})}
        evaluation = {"datasets": [one], **spec}
        return client.post("/merges?dry_run=true", json=recipe | {"evaluation": evaluation})

    return ask


def test_a_dataset_without_any_audio_is_refused(post: Post) -> None:
    document = refusal(post(line("0.wav"), line("no/1.wav")), 422, "invalid_manifest")
    assert "none of its audio is there" in document["detail"]
    assert [error["message"] for error in document["errors"]] == [
        "0.wav: there is no such file",
        "no/1.wav: there is no such file",
    ]
    assert document["errors"][0]["param"] == "evaluation.datasets[0].uri"


def test_audio_outside_the_roots_counts_as_missing(post: Post, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(WAV)
    refusal(post(line(str(tmp_path / "secret.wav"))), 422, "invalid_manifest")
    refusal(post(line("../secret.wav")), 422, "invalid_manifest")


def test_missing_audio_is_a_warning_in_the_plan(post: Post, models: Path) -> None:
    (models / "0.wav").write_bytes(WAV)
    answer = post(line("0.wav"), line("1.wav"), line("x" * 300 + ".wav"))
    assert answer.status_code == 200, answer.text
    (warning,) = answer.json()["warnings"]
    assert warning["code"] == "unusable_audio"
    assert "2 of 3 audio files are not there and will be skipped: 1.wav" in warning["message"]


def test_missing_audio_is_a_warning_of_an_evaluation(
    client: TestClient, finished: str, models: Path
) -> None:
    (models / "0.wav").write_bytes(WAV)
    for lines, status in (([line("1.wav")], 422), ([line("0.wav"), line("1.wav")], 202)):
        (models / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
        spec = {"datasets": [{"name": "set", "uri": f"file://{models}/set.jsonl"}]}
        answer = client.post(f"/merges/{finished}/evaluations", json=spec)
        assert answer.status_code == status, answer.text
    assert "1.wav" in answer.json()["warnings"][0]["message"]


def test_unsupported_audio_is_refused_or_a_warning(post: Post, models: Path) -> None:
    (models / "0.spx").write_bytes(b"\0\0\0\x20Speex")
    document = refusal(post(line("0.spx")), 422, "invalid_manifest")
    assert "0.spx is not wav, flac" in document["detail"]
    (models / "1.wav").write_bytes(WAV)
    answer = post(line("0.spx"), line("1.wav"))
    assert "*.spx cannot be decoded" in answer.json()["warnings"][0]["message"]
    # One damaged file does not speak for its kind.
    (models / "0.wav").write_bytes(b"")
    assert post(line("0.wav"), line("1.wav")).json()["warnings"] == []


def test_what_only_the_worker_can_check_is_a_warning_in_the_plan(
    post: Post, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"audio": [WAV], "text": ["olá"]}), models / "set.parquet")
    dataset = {"uri": f"file://{models}/set.parquet"}
    assert post(dataset=dataset).json()["warnings"] == []
    monkeypatch.setattr(arrow_tables, "is_available", lambda: False)
    (warning,) = post(dataset=dataset).json()["warnings"]
    assert warning["code"] == "unchecked_dataset"
    assert "afluente[worker]" in warning["message"]
    assert "the worker checks the dataset" in warning["message"]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"RIFF\0\0\0\0WAVE", "wav"), (b"RIFX\0\0\0\0WAVE", "wav"), (b"RF64\xff\xff", "wav"),
        (b"riff\x2e\x91\xcf\x11\xa5\xd6", "w64"), (b"FORM\0\0\0\0AIFC", "aiff"), (b".snd", "au"),
        (b"caff\0\1", "caf"), (b"NIST_1A\n", "nist"), (b"fLaC\0", "flac"), (b"OggS\0", "ogg"),
        (b"ID3\4\0", "mp3"), (b"\xff\xfb\x90\x00", "mp3"), (b"\xff\xe3\x18\xc4", "mp3"),
        (b"\xff\xf1\x50\x80", "aac"), (b"RIFF\0\0\0\0AVI ", "avi"), (b"", None),
        (b"\x1aE\xdf\xa3", "matroska"), (b"#EXTM3U", None), (b"ffconcat version 1.0", None),
        (b"\0\0\0\x20ftypM4A ", "mp4"), (b"0&\xb2u\x8ef\xcf\x11", "asf"), (b"#!AMR\n", "amr"),
        (b"\xff\xf1\xfc\x80", None), (b"RIFF\0\0\0\0CDXA", None),
    ],
)  # fmt: skip
def test_the_first_bytes_determine_the_format(head: bytes, kind: str | None) -> None:
    assert container_of(head) == kind


def test_many_lines_are_checked_quickly(tmp_path: Path) -> None:
    names = [f"{index}.wav" for index in range(20_000)]
    (tmp_path / "set.jsonl").write_text("\n".join(json.dumps(line(name)) for name in names))
    (tmp_path / "5.wav").write_bytes(WAV)
    manifest = read_manifest(tmp_path / "set.jsonl", label="set")
    started = time.monotonic()
    (said,) = check_audio(manifest, "set")
    assert time.monotonic() - started < 20
    assert "19,999 of 20,000 audio files are not there" in said


def test_languages_that_the_checkpoint_does_not_know_are_refused_by_name(
    post: Post, models: Path
) -> None:
    (models / "0.wav").write_bytes(WAV)
    for name in ("base", "one", "two"):
        (models / name / "generation_config.json").write_text(json.dumps(GENERATION))
        added = json.dumps(GENERATION["lang_to_id"])
        (models / name / "added_tokens.json").write_text(added)
    known = post(line("0.wav", language="nb"), line("0.wav", lang="fil-PH"), language="eng")
    assert known.status_code == 200, known.text
    document = refusal(
        post(line("0.wav"), line("0.wav", language="por"), line("0.wav", lang="sw")),
        422,
        "invalid_manifest",
    )
    assert document["errors"][0] == {
        "param": "evaluation.datasets[0].uri",
        "message": 'utterance 2 (0.wav): the checkpoint does not know the language "pt" '
        "(en, no, tl)",
    }
    assert len(document["errors"]) == 2
    spoken = post(line("0.wav"), language="pt")
    assert refusal(spoken, 422, "invalid_request")["errors"][0]["param"] == "evaluation.language"
    spoken = post(line("0.wav", language="sw"), dataset={"language": "gsw"})
    document = refusal(spoken, 422, "invalid_request")
    assert document["errors"][0]["param"] == "evaluation.datasets[0].language"


def test_an_english_only_checkpoint_accepts_any_language(post: Post, models: Path) -> None:
    (models / "0.wav").write_bytes(WAV)
    assert post(line("0.wav", language="pt"), language="pt").status_code == 200


def test_another_language_for_whispers_english_models_is_a_warning(
    post: Post, models: Path
) -> None:
    (models / "0.wav").write_bytes(WAV)
    config = {"vocab_size": 51_864}
    tensors = whisper_tensors(**config)
    for name in ("base", "one", "two"):
        for file, content in checkpoint_files(tensors, config).items():
            (models / name / file).write_bytes(content)
    (warning,) = post(line("0.wav", language="pt")).json()["warnings"]
    assert warning["code"] == "english_only"
    assert post(line("0.wav", language="en"), line("0.wav")).json()["warnings"] == []
