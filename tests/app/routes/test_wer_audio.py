from __future__ import annotations

import copy
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient

from app.services.backend import Backend
from tests.app.routes.test_create_merge import refusal
from tests.app.routes.test_evaluations import PERFECT, WORSE, evaluate, result, spec

__all__ = ["spec"]

HEADS = {
    "audio/wav": b"RIFF\x24\0\0\0WAVE",
    "audio/flac": b"fLaC",
    "audio/ogg": b"OggS",
    "audio/mpeg": b"ID3\4",
}
SOUND = HEADS["audio/wav"] + bytes(range(200))


def naming(audio: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a result of the merge whose first utterance is this file."""
    document, utterances = copy.deepcopy(result(PERFECT))
    utterances[0]["audio"] = audio
    return document, utterances


@pytest.fixture
def url(client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]) -> str:
    evaluation = evaluate(client, backend, finished, spec, {"merge": result(PERFECT)})
    return f"/merges/{finished}/wer/audio?evaluation={evaluation}&dataset=set"


def test_an_utterance_is_sent_whole_in_ranges_or_not_again(
    client: TestClient, models: Path, url: str
):
    (models / "1.wav").write_bytes(SOUND)
    whole = client.get(f"{url}&index=1")
    assert (whole.status_code, whole.content) == (200, SOUND)
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["cross-origin-resource-policy"] == "same-origin"
    part = client.get(f"{url}&index=1", headers={"Range": "bytes=100-"})
    assert (part.status_code, part.content) == (206, SOUND[100:])
    assert part.headers["content-range"] == f"bytes 100-{len(SOUND) - 1}/{len(SOUND)}"
    tag = {"If-None-Match": whole.headers["etag"]}
    assert client.get(f"{url}&index=1", headers=tag).status_code == 304
    beyond = client.get(f"{url}&index=1", headers={"Range": "bytes=900-"})
    refusal(beyond, 416, "range_not_satisfiable")
    (models / "1.wav").write_bytes(SOUND + b"more")
    assert client.get(f"{url}&index=1", headers=tag).content == SOUND + b"more"


def test_the_pages_players_lead_to_the_audio(
    client: TestClient, models: Path, finished: str, backend: Backend, spec: dict[str, Any]
):
    evaluate(client, backend, finished, spec, {"merge": result(WORSE), "base": result(PERFECT)})
    (models / "1.wav").write_bytes(SOUND)
    page = client.get(f"/merges/{finished}/wer?format=html")
    players = set(re.findall(r'<audio [^>]*src="([^"]*)"', page.text))
    [url] = [unescape(player) for player in players if "index=1&" in player]
    assert client.get(urljoin(str(page.url), url)).content == SOUND
    assert "media-src 'self';" in page.headers["content-security-policy"]


@pytest.mark.parametrize("media_type", HEADS)
def test_the_media_type_is_that_of_the_bytes(
    client: TestClient, models: Path, url: str, media_type: str
):
    (models / "0.wav").write_bytes(HEADS[media_type])
    assert client.get(f"{url}&index=0").headers["content-type"] == media_type


def test_only_utterances_of_the_merges_results_have_audio(
    client: TestClient, models: Path, url: str, recipe: dict[str, Any]
):
    (models / "1.wav").write_bytes(SOUND)
    refusal(client.get(f"{url}&index=9"), 404, "not_found")
    refusal(client.get(url.replace("dataset=set", "dataset=other") + "&index=1"), 404, "not_found")
    refusal(client.get(f"{url}&index=-1"), 422, "invalid_request")
    other = client.post("/merges", json=recipe).json()["id"]
    elsewhere = url.replace(url.split("/")[2], other)
    refusal(client.get(f"{elsewhere}&index=1"), 404, "not_found")


def test_what_is_gone_or_no_longer_audio_is_not_found(client: TestClient, models: Path, url: str):
    refusal(client.get(f"{url}&index=0"), 404, "not_found")
    (models / "0.wav").write_text("root:x:0:0")
    assert "root" not in refusal(client.get(f"{url}&index=0"), 404, "not_found")["detail"]
    (models / "0.wav").write_bytes(b".snd")  # audio, but no browser plays it
    refusal(client.get(f"{url}&index=0"), 404, "not_found")
    (models / "0.wav").write_bytes(SOUND)
    assert client.get(f"{url}&index=0").status_code == 200
    (models / "set.jsonl").unlink()
    refusal(client.get(f"{url}&index=0"), 404, "not_found")


def test_nothing_outside_the_folders_that_may_be_read_is_sent(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any], tmp_path: Path
):
    (tmp_path / "secret.wav").write_bytes(SOUND)
    (tmp_path / "models" / "link.wav").symlink_to(tmp_path / "secret.wav")
    for audio in (str(tmp_path / "secret.wav"), "../secret.wav", "link.wav", "/no/such.wav"):
        evaluation = evaluate(client, backend, finished, spec, {"merge": naming(audio)})
        query = f"evaluation={evaluation}&dataset=set&index=0"
        answer = client.get(f"/merges/{finished}/wer/audio?{query}")
        refusal(answer, 403, "forbidden")


def test_a_manifest_may_be_a_folder(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any], models: Path
):
    (models / "set").mkdir()
    (models / "set.jsonl").rename(models / "set" / "manifest.jsonl")
    (models / "a.wav").rename(models / "set" / "a.wav")
    spec["datasets"][0]["uri"] = f"file://{models}/set"
    evaluation = evaluate(client, backend, finished, spec, {"merge": naming("a.wav")})
    query = f"evaluation={evaluation}&dataset=set&index=0"
    assert client.get(f"/merges/{finished}/wer/audio?{query}").status_code == 200
