from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from app.contract.errors import StorageError
from app.services.archive import build_archive
from app.services.downloads import Download, OpenFile


def _files(folder: Path, sizes: dict[str, int]) -> list[OpenFile]:
    for name, size in sizes.items():
        (folder / name).write_bytes(name.encode()[:1] * size)
    return [OpenFile.of(folder / name, name) for name in sizes]


def _build(folder: str, files: Iterable[OpenFile]) -> Download:
    found = list(files)
    return build_archive(folder, found, {file.name: "0" * 64 for file in found})


SIZES = {"b": 0, "a": 1, "c": 512, "d": 513, "e" * 120: 3}


def test_any_range_equals_that_range_of_the_whole(tmp_path: Path):
    archive = _build("mrg_x", _files(tmp_path, SIZES))
    whole = archive.read(0, archive.size)
    assert len(whole) == archive.size
    for start in range(0, archive.size, 397):
        assert archive.read(start, start + 700) == whole[start : start + 700]
    archive.close()


def test_order_and_time_of_the_files_change_nothing(tmp_path: Path):
    files = _files(tmp_path, SIZES)
    one, other = _build("m", files), _build("m", reversed(files))
    assert (one.version, one.size) == (other.version, other.size)
    assert one.read(0, one.size) == other.read(0, other.size)
    with tarfile.open(fileobj=io.BytesIO(one.read(0, one.size))) as archive:
        assert archive.getnames() == [f"m/{name}" for name in sorted(SIZES)]
    one.close()


def test_files_above_eight_gigabytes_have_their_size(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(9 * 2**30)  # sparse: takes no space
    archive = _build("m", [OpenFile.of(path, path.name)])
    header = archive.read(0, 512)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == 9 * 2**30
    assert len(archive.read(9 * 2**30, 9 * 2**30 + 2048)) == 2048
    archive.close()


@pytest.mark.parametrize("content", [b"", b"b" * 1000, b"c" * 2000])
def test_a_changed_file_ends_the_download(tmp_path: Path, content: bytes):
    archive = _build("m", _files(tmp_path, {"a": 1000}))
    archive.read(0, 100)
    time.sleep(0.02)  # file systems count time in ticks
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(StorageError, match="a changed"):
        archive.read(0, archive.size)
    archive.close()


def test_a_file_that_is_deleted_is_read_to_its_end(tmp_path: Path):
    archive = _build("m", _files(tmp_path, {"a": 1000}))
    (tmp_path / "a").unlink()
    assert archive.read(512, 1512) == b"a" * 1000
    archive.close()
