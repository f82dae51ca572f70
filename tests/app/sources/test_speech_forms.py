"""Lhotse, NeMo's tars, WebDataset, Common Voice, LibriSpeech, STM, and gzip of any text form."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from app.contract.errors import AfluenteError, InvalidManifestError, SourceTooLargeError
from app.sources import manifest_place
from app.sources.dataset_queries import DatasetQuery, split_query
from app.sources.manifests import FORMS, Manifest, audio_source, read_manifest


def read(path: Path, query: str = "") -> Manifest:
    return read_manifest(path, label="set", query=split_query(f"x?{query}")[1] if query else None)


def refused(path: Path, query: str = "") -> str:
    with pytest.raises(InvalidManifestError) as caught:
        read(path, query)
    return caught.value.message


def content(manifest: Manifest, index: int) -> bytes:
    with audio_source(manifest, manifest.utterances[index]).open() as handle:
        return handle.read()


def texts(manifest: Manifest) -> list[tuple[str, str]]:
    return [(one.audio, one.reference) for one in manifest.utterances]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


@pytest.fixture(scope="module")
def lhotse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a mono and a stereo recording with two supervisions each, as Lhotse does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lhotse
    folder = tmp_path_factory.mktemp("lhotse")
    recordings, supervisions = [], []
    for name, channels in (("a.x", 1), ("b", 2)):
        samples = np.random.default_rng(0).uniform(-0.1, 0.1, (32_000, channels))
        soundfile.write(folder / f"{name}.flac", samples, 16_000)
        recordings.append(lhotse.Recording.from_file(folder / f"{name}.flac", recording_id=name))
        supervisions += [
            lhotse.SupervisionSegment(
                id=f"{name}-{n}",
                recording_id=name,
                start=n + 0.25,
                duration=0.5,
                channel=n if channels == 2 else 0,
                text=f"{name} {n}",
                language="pt",
                speaker=f"speaker {n}",
            )
            for n in range(2)
        ]
    cuts = lhotse.CutSet.from_manifests(
        recordings=lhotse.RecordingSet.from_recordings(recordings),
        supervisions=lhotse.SupervisionSet.from_segments(supervisions),
    )
    trimmed = cuts.trim_to_supervisions().to_eager()
    cuts.to_file(folder / "cuts.jsonl.gz")
    trimmed.to_file(folder / "trimmed.jsonl")
    trimmed.perturb_speed(0.9).to_file(folder / "faster.jsonl")
    trimmed.mix(cuts, duration=1.0).to_file(folder / "mixed.jsonl")
    lhotse.RecordingSet.from_recordings(recordings).to_file(folder / "recordings.jsonl")
    (folder / "shar").mkdir()
    trimmed.to_shar(folder / "shar", fields={"recording": "flac"}, shard_size=3)
    return folder


def test_each_supervision_of_a_cut_is_an_utterance(lhotse: Path) -> None:
    whole, trimmed = read(lhotse), read(lhotse / "trimmed.jsonl")
    first = trimmed.utterances[0]
    assert (first.audio, first.reference) == (str(lhotse / "a.x.flac"), "a.x 0")
    assert (first.offset_seconds, first.duration_seconds) == (0.25, 0.5)
    assert (first.language, first.speaker, first.session) == ("pt", "speaker 0", "a.x")
    stereo = {one.reference: one.channel for one in trimmed.utterances if one.session == "b"}
    assert stereo == {"b 0": 0, "b 1": 1}
    by_text = {one.reference: one.offset_seconds for one in whole.utterances}
    assert by_text == {"a.x 0": 0.25, "a.x 1": 1.25, "b 0": 0.25, "b 1": 1.25}


def test_shar_is_read_with_its_recordings(lhotse: Path) -> None:
    manifest = read(lhotse / "shar")
    assert len(manifest.utterances) == 4
    assert {one.audio.partition("::")[0] for one in manifest.utterances} == {
        "recording.000000.tar",
        "recording.000001.tar",
    }
    for index, one in enumerate(manifest.utterances):
        assert one.offset_seconds == 0
        samples, rate = soundfile.read(io.BytesIO(content(manifest, index)))
        assert (len(samples), rate, one.duration_seconds) == (8_000, 16_000, 0.5)


def test_what_of_lhotse_is_not_read_is_refused_with_the_way_out(lhotse: Path) -> None:
    assert "lhotse cut simple -r recordings.jsonl" in refused(lhotse / "recordings.jsonl")
    assert "transformed as it is loaded" in refused(lhotse / "faster.jsonl")
    assert "CutSet.save_audios(folder)" in refused(lhotse / "mixed.jsonl")


def test_tarred_sets_of_nemo_are_read_by_shard(tmp_path: Path) -> None:
    # convert_to_tarred_audio_dataset.py names the second utterance of a file -sub1.
    lines = []
    for shard in range(3):
        name = f"_data_{shard}.wav"
        write_tar(tmp_path / f"audio_{shard}.tar", {name: b"sound %d" % shard, "other.wav": b"no"})
        for sub in ("", "-sub1"):
            line = {"audio_filepath": f"_data_{shard}{sub}.wav", "text": f"{shard}{sub}"}
            line |= {"offset": 1.0 if sub else 0.0, "duration": 1.0, "shard_id": shard}
            lines.append(line)
    everything = "\n".join(map(json.dumps, lines))
    (tmp_path / "tarred_audio_manifest.json").write_text(everything)
    for shard in range(3):
        own = "\n".join(json.dumps(line) for line in lines if line["shard_id"] == shard)
        write(tmp_path / "sharded_manifests", {f"manifest_{shard}.json": own})
    whole = read(tmp_path)
    assert texts(whole)[2:4] == [
        ("audio_1.tar::_data_1.wav", "1"),
        ("audio_1.tar::_data_1.wav", "1-sub1"),
    ]
    assert content(whole, 3) == b"sound 1"
    assert whole.utterances[3].offset_seconds == 1.0
    ranges = tmp_path / "sharded_manifests/manifest__OP_0..2_CL_.json"
    sharded = read(ranges, "tar=../audio__OP_0..2_CL_.tar")
    assert [one.reference for one in sharded.utterances] == [line["text"] for line in lines]
    assert content(sharded, 5) == b"sound 2"
    (tmp_path / "audio_1.tar").write_bytes(b"\0" * 300)
    assert "audio_1.tar is damaged, or no uncompressed tar" in refused(tmp_path)
    write_tar(tmp_path / "audio_1.tar", {"x.wav": b""})
    assert "manifest.json, line 3: _data_1.wav is not in audio_1.tar" in refused(tmp_path)


def test_webdataset_samples_are_read(tmp_path: Path) -> None:
    first = {"a/1.flac": b"one", "a/1.txt": b"ol\xc3\xa1\n", "a/2.5.wav": b"two", "a/2.txt": b"x"}
    write_tar(tmp_path / "set-000.tar", first)
    facts = json.dumps({"sentence": "tr\u00eas", "speaker": 3, "language": "pt"}).encode()
    write_tar(tmp_path / "set-001.tar", {"3.json": facts, "3.mp3": b"three"})
    for given in (tmp_path, tmp_path / "set-{000..001}.tar"):
        manifest = read(given)
        assert texts(manifest) == [
            ("set-000.tar::a/1.flac", "olá"),
            ("set-000.tar::a/2.5.wav", "x"),
            ("set-001.tar::3.mp3", "três"),
        ]
        assert [content(manifest, index) for index in range(3)] == [b"one", b"two", b"three"]
        assert (manifest.utterances[2].speaker, manifest.utterances[2].language) == ("3", "pt")
    assert len(read(tmp_path, "limit=1").utterances) == 1
    write_tar(tmp_path / "set-001.tar", {"3.mp3": b"", "4.txt": b"x", "5.wav": b"", "5.json": b"["})
    message = refused(tmp_path)
    assert message.startswith("set: set-001.tar, 3: no column of the text")
    assert "(2 more lines are wrong too)" in message


def test_a_split_of_common_voice_is_read_with_its_clips(tmp_path: Path) -> None:
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale\tsegment\n"
    row = 'ab12\tcommon_voice_pt_1.mp3\t7\tEle disse "olá, mundo\t2\tpt\t\n'
    write(tmp_path, {"test.tsv": header + row, "dev.tsv": header + row, "clips/x": ""})
    (one,) = read(tmp_path, "split=test").utterances
    assert (one.audio, one.reference) == ("clips/common_voice_pt_1.mp3", 'Ele disse "olá, mundo')
    assert (one.speaker, one.language) == ("ab12", "pt")
    assert read(tmp_path, "split=validation").utterances == (one,)
    assert "several splits are there (dev, test); choose one with ?split=" in refused(tmp_path)
    assert "there is no split train" in refused(tmp_path, "split=train")


def test_the_splits_of_an_audio_folder_are_chosen(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table = f"file_name,transcription\na.wav,{split}\n"
        write(tmp_path, {f"{split}/metadata.csv": table})
    (one,) = read(tmp_path, "split=test").utterances
    assert one.reference == "test"
    assert read(tmp_path, "split=test").folder == tmp_path / "test"
    assert "several splits are there (test, train)" in refused(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_tables_of_any_separator_are_read(tmp_path: Path, separator: str) -> None:
    rows = [("wav_filename", "wav_filesize", "transcript"), ("a.wav", "9", "um dois")]
    write(tmp_path, {"set.csv": "\n".join(separator.join(row) for row in rows)})
    assert texts(read(tmp_path / "set.csv")) == [("a.wav", "um dois")]
    assert texts(read(tmp_path / "set.csv", "text=wav_filesize")) == [("a.wav", "9")]
    assert "there is no column x (?audio=)" in refused(tmp_path / "set.csv", "audio=x")


def test_librispeech_is_read_below_its_root(tmp_path: Path) -> None:
    folder = "test-clean/1089/134686"
    lines = "1089-134686-0000 HE HOPED\n1089-134686-0001 STUFF\n"
    sounds = {f"{folder}/1089-134686-000{number}.flac": "" for number in range(2)}
    write(tmp_path, {f"{folder}/1089-134686.trans.txt": lines, **sounds})
    for root in (tmp_path, tmp_path / folder):
        first, second = read(root).utterances
        assert audio_source(read(root), first).path == tmp_path / folder / "1089-134686-0000.flac"
        assert (second.reference, second.speaker, second.session) == (
            "STUFF",
            "1089",
            "1089-134686",
        )
    (tmp_path / folder / "1089-134686-0001.flac").unlink()
    assert "line 2: there is no 1089-134686-0001.flac beside it" in refused(tmp_path)


def test_stm_is_read_with_the_audio_beside_it(tmp_path: Path) -> None:
    stm = (
        ";; comment\n"
        "talk 1 ana 0.5 2 <o,f0,female> bom dia\n"
        "talk 1 inter_segment_gap 2 3 ignore_time_segment_in_scoring\n"
        "call A rui 1.0 2.5 sim\ncall B eva 1.0 2.0 <> não\n"
    )
    write(tmp_path, {"stm/test.stm": stm, "sph/talk.sph": "", "stm/call.wav": ""})
    one, two, three = read(tmp_path / "stm").utterances
    assert (one.audio, one.reference, one.channel) == ("../sph/talk.sph", "bom dia", None)
    assert (one.offset_seconds, one.duration_seconds, one.session) == (0.5, 1.5, "talk")
    assert (two.audio, two.channel, two.speaker) == ("call.wav", 0, "call-rui")
    assert (three.channel, three.reference) == (1, "não")
    for line, reason in (
        ("talk 1 ana 2 1 x", "start and end in seconds"),
        ("talk 3 ana 1 2 x", "the channel is 1 or 2"),
        ("lost 1 ana 1 2 x", "there is no audio of lost beside it"),
        ("talk 1", "a line is recording, channel"),
    ):
        write(tmp_path, {"stm/test.stm": line})
        assert "test.stm, line 1: " in refused(tmp_path / "stm")
        assert reason in refused(tmp_path / "stm")


def test_a_folder_is_known_by_its_compressed_texts(tmp_path: Path) -> None:
    write(tmp_path, {"stm/talk.wav": "", "libri/1-2-3.flac": "", "cv/clips/a.mp3": ""})
    for name, text in (
        ("stm/test.stm.gz", "talk 1 ana 0.5 2 bom dia\n"),
        ("libri/1-2.trans.txt.gz", "1-2-3 BOM DIA\n"),
        ("cv/test.tsv.gz", "path\tsentence\na.mp3\tbom dia\n"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert texts(read(tmp_path / "stm")) == [("talk.wav", "bom dia")]
    write(tmp_path, {"stm/test.stm": "talk 1 ana 0.5 2 boa noite\n"})
    assert texts(read(tmp_path / "stm")) == [("talk.wav", "boa noite")]
    assert texts(read(tmp_path / "libri")) == [("1-2-3.flac", "BOM DIA")]
    assert texts(read(tmp_path / "cv", "split=test")) == [("clips/a.mp3", "bom dia")]


def test_any_text_form_may_be_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"audio_filepath": "a.wav", "text": "sim"})
    table = "path;sentence\na.wav;sim\n"
    for name, text in (("manifest.jsonl.gz", line), ("x.tsv.gz", table), ("y.csv.gz", table)):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        assert texts(read(tmp_path / name)) == [("a.wav", "sim")]
    assert read(tmp_path) == read(tmp_path / "manifest.jsonl.gz")
    (tmp_path / "z.csv.gz").write_bytes(gzip.compress(table.encode())[:-9])
    assert "z.csv.gz is damaged gzip" in refused(tmp_path / "z.csv.gz")
    monkeypatch.setattr(manifest_place, "MAX_MANIFEST_BYTES", 1_000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * 1_001))
    with pytest.raises(SourceTooLargeError, match="split it"):
        read(tmp_path / "bomb.jsonl.gz")


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("set.tar.gz", "unpack it"),
        ("set.zip", "unpack it, and give the folder"),
        ("set.TextGrid", "convert it to JSON lines"),
        ("set.ctm", "convert it with ctm2stm"),
        ("set.pkl", "pickled files are never read"),
        ("data.arrow", "as save_to_disk wrote it"),
    ],
)
def test_other_forms_are_refused_with_the_way_out(tmp_path: Path, name: str, way_out: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert f"{name} is not read; " in refused(tmp_path / name)
    assert way_out in refused(tmp_path / name)


def test_a_header_of_a_tar_cannot_fill_the_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "set.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2_048)
    assert "a header is too long" in refused(tmp_path / "set.tar")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_any_bytes_are_read_or_refused(tmp_path: Path, form: Any) -> None:
    random = np.random.default_rng(len(form.name))
    for suffix in form.suffixes[:2]:
        name = suffix if not suffix.startswith(".") else f"set{suffix}"
        for size in (0, 1, 600):
            (tmp_path / (name or "set")).write_bytes(random.bytes(size))
            with pytest.raises(AfluenteError):
                read_manifest(tmp_path / (name or "set"), label="set", query=DatasetQuery())
