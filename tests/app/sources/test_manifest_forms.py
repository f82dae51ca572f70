"""AudioFolder's metadata and Kaldi's folders, given as a folder or as their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.contract.errors import (
    AfluenteError,
    InvalidManifestError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from app.contract.evaluation import Utterance
from app.sources.manifest_columns import TEXT_COLUMNS
from app.sources.manifests import Manifest, audio_source, read_manifest

KALDI = {
    "wav.scp": "call1 audio/call1.flac\ncall2 /speech/call 2.wav\n",
    "segments": "ana-1 call1 0.50 2.25\nrui-1 call2 0 -1 1\n",
    "text": "rui-1 boa tarde\nana-1 bom  dia a todos\n",
    "utt2spk": "ana-1 ana\nrui-1 rui\n",
}


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(raw)
    return folder


def read(folder: Path, files: dict[str, str | bytes]) -> Manifest:
    return read_manifest(write(folder, **files), label="set")


def refused(folder: Path, files: dict[str, str | bytes]) -> str:
    with pytest.raises(InvalidManifestError) as caught:
        read(folder, files)
    assert caught.value.message.startswith("set: ")
    return caught.value.message


def texts(manifest: Manifest) -> list[tuple[str, str]]:
    return [(utterance.audio, utterance.reference) for utterance in manifest.utterances]


def test_a_csv_is_read_with_its_speakers_and_quotes(tmp_path: Path) -> None:
    rows = (
        "\ufefffile_name,duration,sentence,lang,speaker_id,session,channel\r\n"
        'audio/a.mp3,9999,"sim, ""claro""\r\nque sim",pt-BR,17,,1\r\n'
        "\r\n"
        "b.wav,,,,,s1,\r\n"
    )
    manifest = read(tmp_path, {"metadata.csv": rows})
    first, second = manifest.utterances
    assert first == Utterance(
        index=0,
        audio="audio/a.mp3",
        reference='sim, "claro"\r\nque sim',
        channel=1,
        language="pt",
        speaker="17",
    )
    assert (second.reference, second.speaker, second.session) == ("", None, "s1")
    assert audio_source(manifest, first).path == tmp_path / "audio/a.mp3"
    assert read_manifest(tmp_path / "metadata.csv", label="set") == manifest


def test_json_lines_of_an_audio_folder_are_read(tmp_path: Path) -> None:
    line = {"file_name": "a.flac", "text": "olá", "speaker": 3, "duration": "n/a"}
    manifest = read(tmp_path, {"metadata.jsonl": json.dumps(line)})
    expected = Utterance(index=0, audio="a.flac", reference="olá", speaker="3")
    assert manifest.utterances == (expected,)
    other = write(tmp_path / "other", **{"test.jsonl": json.dumps(line)})
    assert read_manifest(other / "test.jsonl", label="set").utterances == (expected,)


@pytest.mark.parametrize("position", range(len(TEXT_COLUMNS)))
def test_the_text_is_the_first_of_its_columns(tmp_path: Path, position: int) -> None:
    columns = TEXT_COLUMNS[position:][::-1]
    header = ",".join(("file_name", *columns))
    manifest = read(tmp_path, {"metadata.csv": f"{header}\na.wav,{','.join(columns)}\n"})
    assert texts(manifest) == [("a.wav", TEXT_COLUMNS[position])]
    (tmp_path / "metadata.csv").unlink()
    line = {"file_name": "a.wav", **{name: name for name in columns}}
    assert read(tmp_path, {"metadata.jsonl": json.dumps(line)}).utterances == manifest.utterances


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("clip,sentence\na.wav,x\n", "line 1: no column of the audio; one of audio, file_name"),
        ("file_name:text\na.wav:x\n", "there is file_name:text"),
        ("file_name,caption\na.wav,x\n", "line 1: no column of the text; one of transcription"),
        ("file_name,text,text\na.wav,x,y\n", "line 1: the header has text twice"),
        ("file_name,text\na.wav,x,y\n", "line 2: 3 fields where the header has 2"),
        ("file_name,text\n,x\n", "line 2: file_name missing"),
        ("file_name,text\na.wav,b\0c\n", "line 2: text holds a NUL"),
        ("file_name,text,lang\na.wav,x,Portuguese\n", 'line 2: language: "Portuguese"'),
        ('file_name,text\na.wav,x\nb.wav,"never closed\n', "not CSV: unexpected end of data"),
        (b"file_name,text\na.wav,x\nb.wav,ol\xe9\n", "line 3: not UTF-8"),
        ("file_name,text\n", "metadata.csv holds no utterances"),
        ("", "metadata.csv holds no utterances"),
    ],
)
def test_a_faulty_csv_is_refused_by_line(tmp_path: Path, content: str | bytes, reason: str) -> None:
    assert reason in refused(tmp_path, {"metadata.csv": content})


def test_a_line_without_the_text_of_the_others_is_refused(tmp_path: Path) -> None:
    lines = [
        {"file_name": "a.wav", "transcription": "x", "text": "X"},
        {"file_name": "b.wav", "text": "Y"},
    ]
    content = "\n".join(json.dumps(line) for line in lines)
    message = refused(tmp_path, {"metadata.jsonl": content})
    assert "metadata.jsonl, line 2: transcription missing" in message


def test_a_kaldi_folder_is_read(tmp_path: Path) -> None:
    manifest = read(tmp_path, KALDI)
    assert manifest.utterances == (
        Utterance(
            index=0,
            audio="audio/call1.flac",
            reference="bom  dia a todos",
            offset_seconds=0.5,
            duration_seconds=1.75,
            speaker="ana",
            session="call1",
        ),
        Utterance(
            index=1,
            audio="/speech/call 2.wav",
            reference="boa tarde",
            offset_seconds=0.0,
            channel=1,
            speaker="rui",
            session="call2",
        ),
    )
    for name in KALDI:
        assert read_manifest(tmp_path / name, label="set") == manifest


def test_every_file_of_a_kaldi_folder_counts_in_its_digest(tmp_path: Path) -> None:
    digests = {read(tmp_path, KALDI).manifest_sha256}
    for name, content in KALDI.items():
        digests.add(read(tmp_path, KALDI | {name: content + "\n"}).manifest_sha256)
    assert len(digests) == 1 + len(KALDI)


def test_without_segments_each_recording_is_an_utterance(tmp_path: Path) -> None:
    files = {"wav.scp": "a a.wav\nb b.wav", "text": "a olá\nb", "utt2spk": "a a\nb b"}
    manifest = read(tmp_path, files)
    assert texts(manifest) == [("a.wav", "olá"), ("b.wav", "")]
    # Speakers called as their utterances are speakers that nobody knows.
    assert {(u.speaker, u.session, u.offset_seconds) for u in manifest.utterances} == {
        (None, None, None)
    }


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"wav.scp": "call1 sph2pipe -f wav a.sph |\ncall2 b"}, "line 1: a command is never run"),
        ({"wav.scp": "call1 | cat\ncall2 b"}, "line 1: a command is never run"),
        ({"wav.scp": "call1 raw.ark:12\ncall2 b"}, "line 1: only audio files are read"),
        ({"wav.scp": "call1 -\ncall2 b"}, "line 1: only audio files are read"),
        ({"wav.scp": "call1\ncall2 b"}, "line 1: the recording has no file"),
        ({"wav.scp": "call1 a\ncall1 b"}, 'line 2: "call1" is there twice (before in line 1)'),
        ({"wav.scp": "call1 a"}, 'segments, line 2: wav.scp has no recording "call2"'),
        ({"segments": "ana-1 call1 0 1 A\n"}, "line 1: channel must be a number from 0"),
        ({"segments": "ana-1 call1 0\n"}, "line 1: a segment is an utterance, a recording"),
        ({"segments": "ana-1 call1 0 1e999\n"}, 'line 1: "1e999" is not a number'),
        ({"text": "ana-1 " + "a" * 200_001}, "line 1: the line has 200,001 characters"),
        ({"segments": "ana-1 call1 x 2\n"}, 'line 1: "x" is not a number'),
        ({"segments": "ana-1 call1 nan 2\n"}, 'line 1: "nan" is not a number'),
        ({"segments": "ana-1 call1 2 1\n"}, "line 1: a segment starts at 0 or later"),
        ({"segments": "ana-1 call1 -1 1\n"}, "line 1: a segment starts at 0 or later"),
        ({"text": "ana-1 bom dia"}, 'segments, line 2: text has no line for "rui-1"'),
        ({"text": KALDI["text"] + "eva-1 sim"}, 'text, line 3: segments has no line for "eva-1"'),
        ({"text": b"ana-1 ol\xe9"}, "text, line 1: not UTF-8 (byte 9 of the line)"),
        ({"wav.scp": "", "text": "", "segments": ""}, "wav.scp holds no utterances"),
    ],
)
def test_a_faulty_kaldi_folder_is_refused_by_file_and_line(
    tmp_path: Path, files: dict[str, str | bytes], reason: str
) -> None:
    assert reason in refused(tmp_path, KALDI | files)


def test_a_kaldi_folder_without_its_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="text: there is no such file"):
        read(tmp_path, {"wav.scp": KALDI["wav.scp"]})


def test_a_folder_with_two_manifests_does_not_say_which(tmp_path: Path) -> None:
    message = refused(tmp_path, KALDI | {"metadata.csv": "file_name,text\na.wav,x\n"})
    assert "wav.scp and metadata.csv; give the path" in message


def test_files_that_lead_out_of_the_roots_are_refused(tmp_path: Path) -> None:
    secret = write(tmp_path / "outside", secret="rui-1 a\nana-1 b\n") / "secret"
    for name, form in (("text", KALDI), ("utt2spk", KALDI), ("metadata.csv", {})):
        inside = write(tmp_path / f"inside-{name}", **form)
        (inside / name).unlink(missing_ok=True)
        (inside / name).symlink_to(secret)
        with pytest.raises(SourceNotAllowedError, match=f"{name}: outside the folders"):
            read_manifest(inside, label="set", roots=(inside,))


LINES = st.lists(
    st.sampled_from(["a a.wav", "a", "b b|", "a a 0 1", "a b 0.5 -1", "ç x y", "\0", ""])
    | st.text(max_size=20)
).map("\n".join)
CONTENTS = st.binary(max_size=60) | LINES.map(lambda text: text.encode(errors="surrogatepass"))
CELLS = st.sampled_from(["file_name", "text", "speaker", "lang", '"', ",", "\r\n", "\0", "pt"])
TABLES = st.lists(CELLS | st.text(max_size=5), max_size=30).map("".join)


def check(folder: Path, files: dict[str, str | bytes]) -> None:
    try:
        manifest = read(folder, files)
    except AfluenteError:
        return
    for index, utterance in enumerate(manifest.utterances):
        assert utterance.index == index
        assert Utterance.model_validate_json(utterance.model_dump_json()) == utterance


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.fixed_dictionaries(dict.fromkeys(KALDI, CONTENTS)))
def test_any_bytes_are_a_kaldi_folder_or_refused(
    tmp_path: Path, files: dict[str, str | bytes]
) -> None:
    check(tmp_path, files)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=80)
    | TABLES.map(lambda t: ("file_name,text" + t).encode(errors="replace"))
)
def test_any_bytes_are_a_csv_or_refused(tmp_path: Path, content: bytes) -> None:
    check(tmp_path, {"metadata.csv": content})
