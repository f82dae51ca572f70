"""Audio inside a parquet file or a tar is decoded as if it were a file."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from app.contract.evaluation import DecodingOptions
from app.sources.manifests import audio_source, read_manifest
from worker.evaluation.audio import AudioError, find_segment, inspect, read_segment
from worker.evaluation.cache import InMemoryTranscriptCache
from worker.evaluation.runner import evaluate


def encoded(samples: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16_000, format=form)
    return stream.getvalue()


def test_rows_are_decoded_as_their_files_and_bad_ones_are_skipped_by_name(
    english: Path, tmp_path: Path, make_sound: Callable[..., np.ndarray]
) -> None:
    good = [encoded(make_sound(0.5, pitch=p), form) for p, form in ((120, "FLAC"), (160, "MP3"))]
    cells = [*good, b"no audio at all", good[0][:-900], None, good[0]]
    table = pa.table({"audio": cells, "text": ["x"] * len(cells)})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=2)
    for number, content in enumerate(good):
        (tmp_path / f"{number}.flac").write_bytes(content)
    cache = InMemoryTranscriptCache()
    manifest = read_manifest(tmp_path / "set.parquet", label="set")
    result = evaluate(english, "key", manifest, DecodingOptions(num_beams=1), cache)
    assert [one.index for one in result.utterances] == [0, 1, 5]
    reasons = {one.audio: one.reason for one in result.skipped}
    assert "not wav, flac" in reasons["set.parquet::2"]
    assert "damaged" in reasons["set.parquet::3"]
    assert reasons["set.parquet::4"] == "row 4 has no audio in audio"
    # Transcripts are kept by the audio's own digest: the files' are those of the rows.
    (tmp_path / "files.csv").write_text("path,text\n0.flac,x\n1.flac,x\n")
    files = read_manifest(tmp_path / "files.csv", label="set")
    again = evaluate(english, "key", files, DecodingOptions(num_beams=1), cache)
    assert all(one.cached for one in again.utterances)
    assert len(cache.transcripts) == 2


def test_a_container_that_changes_between_two_readings_is_noticed(
    tmp_path: Path, make_sound: Callable[..., np.ndarray]
) -> None:
    samples = make_sound(0.5)
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.wav", encoded(samples, "WAV")), ("a.txt", b"sim")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    manifest = read_manifest(path, label="set")
    segment = find_segment(audio_source(manifest, manifest.utterances[0]), 0.25)
    assert np.abs(read_segment(segment) - samples[4_000:]).max() < 1e-4
    assert inspect(segment.sound.source).content.frames == 8_000
    path.write_bytes(path.read_bytes()[:6_000])
    with pytest.raises(AudioError, match="changed since it was looked at"):
        read_segment(segment)
    with pytest.raises(AudioError, match="the tar ends within it"):
        inspect(segment.sound.source)
