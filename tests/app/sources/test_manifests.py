from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.contract.errors import (
    AfluenteError,
    InvalidManifestError,
    SourceNotFoundError,
    SourceTooLargeError,
)
from app.contract.evaluation import Utterance
from app.sources import manifest_place
from app.sources.manifests import Manifest, audio_source, read_manifest

GOOD = {"audio_filepath": "a.wav", "text": "bom dia"}


def write(folder: Path, *lines: object, name: str = "set.jsonl") -> Path:
    path = folder / name
    parts = (
        line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()
        for line in lines
    )
    path.write_bytes(b"\n".join(parts) + b"\n")
    return path


def read(folder: Path, *lines: object) -> Manifest:
    return read_manifest(write(folder, *lines), label="parliament")


def test_every_field_is_read(tmp_path: Path) -> None:
    line = GOOD | {"duration": 2, "offset": 0.5, "lang": "pt-PT", "speaker": "ana", "session": 3}
    manifest = read(tmp_path, line | {"channel": 1, "another": {"field": []}})
    assert manifest.utterances == (
        Utterance(
            index=0,
            audio="a.wav",
            reference="bom dia",
            duration_seconds=2.0,
            offset_seconds=0.5,
            channel=1,
            language="pt",
            speaker="ana",
            session="3",
        ),
    )
    content = (tmp_path / "set.jsonl").read_bytes()
    assert manifest.manifest_sha256 == hashlib.sha256(content).hexdigest()


def test_audio_is_beside_the_manifest_unless_absolute(tmp_path: Path) -> None:
    manifest = read(tmp_path, GOOD, GOOD | {"audio_filepath": "/speech/b.wav"})
    paths = [audio_source(manifest, utterance).path for utterance in manifest.utterances]
    assert paths == [tmp_path / "a.wav", Path("/speech/b.wav")]


def test_an_empty_text_is_an_empty_reference(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD | {"text": ""}).utterances[0].reference == ""


def test_blank_lines_a_bom_and_windows_line_ends_are_taken(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    manifest = read(tmp_path, b"\xef\xbb\xbf" + line + b"\r", b"", b"   ", line)
    assert [utterance.index for utterance in manifest.utterances] == [0, 1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"audio_filepath": "a.wav", "text": "ol\xe9"}', "not UTF-8 (byte 40 of the line)"),
        (b"a.wav\tbom dia", "not JSON"),
        (b'{"audio_filepath": "a.wav"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (
            b'{"audio_filepath": "a.wav", "text": "x", "duration": ' + b"9" * 9_999 + b"}",
            "not JSON",
        ),
        (["a.wav", "bom dia"], "a JSON object is needed, this is a list"),
        ({"text": "x"}, "audio_filepath missing"),
        ({"audio_filepath": "a.wav"}, "text missing"),
        ({"audio_filepath": None, "text": None}, "audio_filepath and text missing"),
        (GOOD | {"audio_filepath": ""}, "audio_filepath is empty"),
        (GOOD | {"text": 5}, "text must be a string, not a number"),
        (GOOD | {"text": "a\0b"}, "NUL"),
        (GOOD | {"text": "a" * 200_001}, "text has 200,001 characters; at most 200,000"),
        (GOOD | {"audio_filepath": "a/" * 2_049}, "audio_filepath has 4,098 characters"),
        (GOOD | {"speaker": "a" * 1_001}, "speaker has 1,001 characters"),
        (GOOD | {"session": 10**1_001}, "session has 1,002 characters"),
        (GOOD | {"other": "a" * 1_000_000}, "bytes; a line may have 1,000,000"),
        (GOOD | {"channel": -1}, "channel must be a number from 0 to 63"),
        (GOOD | {"channel": 64}, "channel must be a number from 0 to 63"),
        (GOOD | {"channel": 10**300}, "channel must be a number from 0 to 63"),
        (GOOD | {"channel": True}, "channel must be a number from 0 to 63"),
        (GOOD | {"channel": "left"}, "channel must be a number from 0 to 63"),
        (GOOD | {"offset": float("inf")}, "offset must be a number of seconds from 0 up"),
        (GOOD | {"duration": -1e-9}, "duration must be a number of seconds from 0 up"),
        (b'{"audio_filepath": "a.wav", "text": "\\ud83d"}', "surrogate"),
        (GOOD | {"duration": "2"}, "duration must be a number of seconds, not a string"),
        (GOOD | {"duration": True}, "duration must be a number of seconds, not a boolean"),
        (GOOD | {"duration": float("nan")}, "duration must be a number of seconds from 0 up"),
        (GOOD | {"duration": 10**400}, "duration must be a number of seconds from 0 up"),
        (GOOD | {"offset": -1}, "offset must be a number of seconds from 0 up"),
        (GOOD | {"language": "portuguese"}, 'such as "pt"'),
        (GOOD | {"speaker": ["ana"]}, "speaker must be a string, not a list"),
    ],
)
def test_a_faulty_line_is_refused_by_file_and_line(
    tmp_path: Path, line: object, reason: str
) -> None:
    with pytest.raises(InvalidManifestError) as caught:
        read(tmp_path, GOOD, line)
    assert caught.value.message.startswith("parliament: set.jsonl, line 2: ")
    assert reason in caught.value.message


def test_the_first_ten_faults_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifestError, match="24 more lines are wrong too") as caught:
        read(tmp_path, *[{"text": "x"}] * 25)
    places = [problem.message.split(":")[0] for problem in caught.value.problems]
    assert places == [f"set.jsonl, line {number}" for number in range(1, 11)]


def test_no_utterances_no_file_and_other_forms_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidManifestError, match="holds no utterances"):
        read(tmp_path)
    with pytest.raises(SourceNotFoundError, match=r"none\.jsonl: there is no such file"):
        read_manifest(tmp_path / "none.jsonl", label="set")
    with pytest.raises(InvalidManifestError, match="the folder holds no manifest"):
        read_manifest(tmp_path, label="set")
    with pytest.raises(InvalidManifestError, match=r"test\.zip is not read; unpack it"):
        read_manifest(write(tmp_path, b"path\tsentence", name="test.zip"), label="set")
    for ends in (b"\n", b"\r"):
        monkeypatch.setattr(manifest_place, "MAX_LINES", 3)
        with pytest.raises(SourceTooLargeError, match="more than 3 lines; split it"):
            read(tmp_path, ends * 4)
    monkeypatch.setattr(manifest_place, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(SourceTooLargeError, match="split it"):
        read(tmp_path, GOOD)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        "channel",
        "audio_filepath",
        "text",
        "duration",
        "offset",
        "language",
        "lang",
        "speaker",
        "session",
    ]
)
LINES = st.binary() | st.dictionaries(FIELDS, JSON).map(lambda line: json.dumps(GOOD | line)).map(
    str.encode
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=4))
def test_any_bytes_are_a_manifest_or_refused(tmp_path: Path, lines: list[bytes]) -> None:
    try:
        manifest = read(tmp_path, *lines)
    except AfluenteError:
        return
    for utterance in manifest.utterances:
        assert Utterance.model_validate_json(utterance.model_dump_json()) == utterance


@pytest.mark.parametrize(
    "content",
    [
        b'{"audio_filepath": "a", "text": "' + b"[" * 900_000 + b'"}',
        b"[" * 900_000,
        b'{"a":' * 150_000,
        b"\n" * 900_000,
        b'"' * 900_000,
        b"{" + b",".join(b'"k%d": 1' % key for key in range(60_000)) + b"}",
        b'{"audio_filepath": "a", "text": "b", "duration": ' + b"1" * 900_000 + b"}",
    ],
)
@pytest.mark.parametrize("name", ["set.jsonl", "metadata.csv", "text"])
def test_hostile_megabytes_are_refused_in_no_time(
    tmp_path: Path, content: bytes, name: str
) -> None:
    if name == "text":
        (tmp_path / "wav.scp").write_bytes(content)
    elif name == "metadata.csv":
        content = b"file_name,text\n" + content
    (tmp_path / name).write_bytes(content)
    started = time.process_time()
    with pytest.raises(AfluenteError) as refusal:
        read_manifest(tmp_path / name, label="set")
    assert time.process_time() - started < 5
    assert len(refusal.value.message) < 2_000
