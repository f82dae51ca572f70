"""Datasets as the library `datasets` writes them, on this machine and on the hub."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from app.contract.errors import InvalidManifestError, SourceError, SourceNotAllowedError
from app.sources import arrow_tables, manifest_hugging_face
from app.sources.audio_sources import AudioSource
from app.sources.dataset_checks import check_audio
from app.sources.datasets import open_audio, read_dataset
from app.sources.manifests import Manifest, audio_source
from app.sources.policy import SourcePolicy
from app.sources.shared_audio import shared_recordings

ROWS = 7


def flac(number: int) -> bytes:
    stream = io.BytesIO()
    samples = 0.1 * np.sin(np.arange(1_600) / (5 + number))
    soundfile.write(stream, samples.astype(np.float32), 16_000, format="FLAC")
    return stream.getvalue()


SOUNDS = [flac(number) for number in range(ROWS)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a dataset of the library, as Common Voice has its columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import datasets
    datasets.disable_progress_bars()
    rows = {
        "client_id": [f"speaker {number % 2}" for number in range(ROWS)],
        "audio": [{"bytes": one, "path": f"{n}.flac"} for n, one in enumerate(SOUNDS)],
        "sentence": [f"frase {number}" for number in range(ROWS)],
        "locale": [1] * ROWS,
    }
    made = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())
    return made.cast_column("locale", datasets.ClassLabel(names=["en", "pt"]))


@pytest.fixture
def folder(policy: SourcePolicy) -> Path:
    assert policy.file_roots
    return policy.file_roots[0]


@pytest.fixture
def read(policy: SourcePolicy, folder: Path) -> Callable[..., Manifest]:
    return lambda at="": read_dataset(f"{folder.as_uri()}/{at}", policy)


def content(source: AudioSource, policy: SourcePolicy | None = None) -> bytes:
    with source.open(policy and policy.file_roots) as handle:
        return handle.read()


def check(manifest: Manifest, policy: SourcePolicy, name: str) -> None:
    """Every row must have its text, and its audio byte for byte."""
    first = manifest.utterances[0]
    assert first.audio == f"{name}::0 (0.flac)"
    assert (first.speaker, first.language) == ("speaker 0", "pt")
    assert [one.reference for one in manifest.utterances] == [f"frase {n}" for n in range(ROWS)]
    for order in (range(ROWS), (6, 0, 3, 3)):
        for index in order:
            source = audio_source(manifest, manifest.utterances[index])
            assert content(source, policy) == SOUNDS[index]
    assert check_audio(manifest, "set", policy.file_roots) == []


def test_parquet_is_read_in_a_folder_with_splits(
    dataset: Any, folder: Path, policy: SourcePolicy, read: Callable[..., Manifest]
) -> None:
    (folder / "data").mkdir()
    # Row groups of three rows.
    for split in ("train", "test"):
        dataset.to_parquet(folder / f"data/{split}-00000-of-00001.parquet", batch_size=3)
    name = "data/test-00000-of-00001.parquet"
    check(read("?split=test"), policy, name)
    check(read(name), policy, "test-00000-of-00001.parquet")
    with pytest.raises(InvalidManifestError, match=r"splits are there \(test, train\); choose"):
        read()
    with pytest.raises(InvalidManifestError, match="no split dev; there is test, train"):
        read("?split=dev")
    chosen = read("?split=test&text=client_id&speaker=&language=&limit=2")
    assert [(one.reference, one.speaker) for one in chosen.utterances] == [
        ("speaker 0", None),
        ("speaker 1", None),
    ]
    assert chosen.manifest_sha256 != read("?split=test&limit=2").manifest_sha256
    uri = f"{folder.as_uri()}?split=test"
    with open_audio(uri, f"{name}::4 (4.flac)", policy) as handle:
        assert handle.read() == SOUNDS[4]
    sets = {"one": read("?split=test&limit=2")}, {"two": read("?split=train")}
    messages = shared_recordings(*sets, policy.file_roots)
    assert len(messages) == 2
    assert "train-00000-of-00001.parquet::1 (1.flac) (utterance 2 of two)" in messages[1]


def test_what_save_to_disk_wrote_is_read(
    dataset: Any, folder: Path, policy: SourcePolicy, read: Callable[..., Manifest]
) -> None:
    import datasets

    datasets.DatasetDict({"train": dataset, "dev": dataset}).save_to_disk(folder / "saved")
    check(read("saved?split=dev"), policy, "dev/data-00000-of-00001.arrow")
    check(read("saved/train"), policy, "data-00000-of-00001.arrow")
    with pytest.raises(InvalidManifestError, match=r"\?split=dev"):
        read("saved")


def test_the_configs_of_a_readme_decide(
    dataset: Any, folder: Path, read: Callable[..., Manifest]
) -> None:
    for name in ("a/x.parquet", "a/y.parquet", "b/z.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        dataset.select(range(2)).to_parquet(folder / name)
    configs = (
        "---\nconfigs:\n- config_name: pt\n  data_files:\n  - split: dev\n    path: a/*\n"
        "- config_name: en\n  data_files: b/*\n---\n"
    )
    (folder / "README.md").write_text(configs)
    assert len(read("?config=pt&split=dev").utterances) == 4
    assert len(read("?config=en").utterances) == 2
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert len(read("?config=a").utterances) == 4


def test_paths_are_relative_to_the_parquet(
    folder: Path, policy: SourcePolicy, read: Callable[..., Manifest]
) -> None:
    (folder / "data").mkdir()
    (folder / "data/0.flac").write_bytes(SOUNDS[0])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": None, "path": "0.flac"}], kind)
    table = pa.table({"audio": column, "text": ["olá"]})
    pq.write_table(table, folder / "data/test.parquet")
    assert read().utterances[0].audio == "data/0.flac"
    assert check_audio(read(), "set", policy.file_roots) == []
    pq.write_table(
        pa.table({"file_name": ["0.flac"], "text": ["olá"]}), folder / "data/test.parquet"
    )
    assert read().utterances[0].audio == "data/0.flac"


def test_faults_are_named(
    folder: Path, policy: SourcePolicy, read: Callable[..., Manifest]
) -> None:
    def write(**columns: Any) -> Path:
        path = folder / "set.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=1)
        return path

    cells = [SOUNDS[0], b"no audio", SOUNDS[1][:40], None]
    write(audio=cells, text=["a", "b", "c", "d"])
    manifest = read()
    assert check_audio(manifest, "set", policy.file_roots) == []
    with pytest.raises(SourceError, match=r"row 3 has no audio in audio"):
        audio_source(manifest, manifest.utterances[3]).open(policy.file_roots)
    write(audio=[b"none", b"no audio"], text=["a", "b"])
    with pytest.raises(InvalidManifestError, match=r"set\.parquet::0 is not wav"):
        check_audio(read(), "set", policy.file_roots)
    for columns, reason in (
        ({"audio": [b"x"], "caption": ["a"]}, "set.parquet: no column of the text; one of"),
        ({"sound": [b"x"], "text": ["a"]}, "set.parquet: no column of the audio; one of"),
        ({"audio": [b"x", b"y"], "text": ["a", None]}, "set.parquet, row 1: text missing"),
        ({"audio": [b"x"], "text": [5]}, "set.parquet, row 0: text must be a string"),
        ({"audio": [[0.5]], "text": ["a"]}, "no encoded audio and no path; save the dataset"),
        ({"audio": pa.array([], pa.binary()), "text": pa.array([], pa.string())}, "no utterances"),
    ):
        write(**columns)
        with pytest.raises(InvalidManifestError) as caught:
            read()
        assert reason in caught.value.message
    path = write(audio=[SOUNDS[0]], text=["a"])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InvalidManifestError, match=r"set\.parquet is damaged"):
        read()


def test_a_damaged_row_group_is_named_and_the_others_are_read(
    folder: Path, policy: SourcePolicy, read: Callable[..., Manifest]
) -> None:
    path = folder / "set.parquet"
    pq.write_table(pa.table({"audio": SOUNDS, "text": ["a"] * ROWS}), path, row_group_size=1)
    damaged = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    damaged[chunk.data_page_offset : chunk.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(damaged)
    manifest = read()
    for index in (1, 2, 3, 2):
        source = audio_source(manifest, manifest.utterances[index])
        if index == 2:
            with pytest.raises(SourceError, match="row 2 cannot be read"):
                source.open()
        else:
            assert content(source) == SOUNDS[index]


def test_memory_is_that_of_a_row_group(folder: Path, read: Callable[..., Manifest]) -> None:
    cells = [np.random.default_rng(n).bytes(1 << 19) for n in range(64)]
    pq.write_table(
        pa.table({"audio": cells, "text": ["a"] * 64}), folder / "set.parquet", row_group_size=4
    )
    before = pa.total_allocated_bytes()
    manifest = read()
    assert pa.total_allocated_bytes() - before < 1 << 20
    for utterance, cell in zip(manifest.utterances, cells, strict=True):
        assert content(audio_source(manifest, utterance)) == cell
        assert pa.total_allocated_bytes() - before < 12 << 20


@pytest.fixture
def hub(stand_in: Any, dataset: Any, tmp_path: Path) -> Any:
    """Serve the dataset in two shards of a split, beside another config."""
    files = {"README.md": b"# No configs"}
    for name, rows in (("0000", range(4)), ("0001", range(4, ROWS))):
        dataset.select(rows).to_parquet(tmp_path / name)
        files[f"pt/test/{name}.parquet"] = (tmp_path / name).read_bytes()
    files["en/test/0000.parquet"] = b"never read"
    stand_in.add_model("org/speech", files, "refs/convert/parquet", "datasets")
    return stand_in


URI = "hf://datasets/org/speech@refs/convert/parquet?config=pt&split=test"


def test_a_dataset_of_the_hub_is_downloaded_once(hub: Any, web_policy: SourcePolicy) -> None:
    manifest = read_dataset(URI, web_policy)
    # The cache may lie outside the folders that callers' files must be in.
    assert content(audio_source(manifest, manifest.utterances[5]), web_policy) == SOUNDS[5]
    assert manifest.utterances[5].audio == "pt/test/0001.parquet::1 (5.flac)"
    assert read_dataset(URI, web_policy) == manifest
    assert len([path for path in hub.paths() if path.startswith("/cdn/")]) == 2
    assert len(read_dataset(f"{URI}&limit=3", web_policy).utterances) == 3


def test_a_cut_download_goes_on_by_range(hub: Any, web_policy: SourcePolicy) -> None:
    large = next(path for path in hub.files if path.startswith("/cdn/"))
    hub.cuts[large] = [500]
    assert len(read_dataset(URI, web_policy).utterances) == ROWS
    asked = [headers.get("range") for path, headers in hub.requests if path == large]
    assert asked == [None, "bytes=500-"]


def test_while_a_client_waits_only_texts_are_read_by_range(
    hub: Any, web_policy: SourcePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sources.datasets._BUFFER_BYTES", 1_024)
    waiting = replace(web_policy, give_up_at=time.monotonic() + 60)
    manifest = read_dataset(URI, waiting)
    assert manifest.utterances == read_dataset(URI, web_policy).utterances
    assert manifest.manifest_sha256 == read_dataset(URI, web_policy).manifest_sha256
    assert check_audio(manifest, URI, waiting.file_roots) == []
    assert not manifest.members
    assert manifest.remote
    monkeypatch.setattr("app.sources.datasets._MOST_SECONDS", -1)
    assert read_dataset(URI, waiting).unread == 0  # a batch is read whole
    monkeypatch.setattr(arrow_tables, "_ROWS_AT_ONCE", 1)
    assert read_dataset(URI, waiting).unread == ROWS - 2


def test_what_the_hub_does_not_have_is_named(hub: Any, web_policy: SourcePolicy) -> None:
    hub.add_model("org/other", {"data.zip": b""}, kind="datasets")
    for uri, reason in (
        ("hf://datasets/org/other", "hf://datasets/org/other@refs/convert/parquet"),
        ("hf://datasets/org/none", "the hub has no dataset org/none"),
        ("hf://org/speech", "this names a model; a dataset is hf://datasets/"),
        (URI.replace("=pt", "=fr"), "no config fr; there is en, pt"),
        (URI.replace("config=pt&", ""), r"several configs are there (en, pt)"),
        (URI.replace("=pt", "=en"), "en/test/0000.parquet is damaged"),
        (URI + "&token=secret", "a dataset's query has config, split"),
    ):
        with pytest.raises(SourceError) as caught:
            read_dataset(uri, web_policy)
        assert reason in caught.value.message, uri
    with pytest.raises(SourceNotAllowedError):
        read_dataset("hf://datasets/a/b/c", web_policy)


def test_without_pyarrow_the_set_is_left_to_the_workers(
    dataset: Any, folder: Path, read: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.to_parquet(folder / "test.parquet")
    monkeypatch.setattr(arrow_tables, "is_available", lambda: False)
    with pytest.raises(manifest_hugging_face.NoArrowError, match=r"afluente\[worker\]"):
        read()
