from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path

import pytest

from app.services.archive import Archive, build_archive, read
from app.services.artifacts import Artifact


def _artifacts(folder: Path, sizes: dict[str, int]) -> list[Artifact]:
    found = []
    for name, size in sizes.items():
        path = folder / name
        path.write_bytes(name.encode()[:1] * size)
        found.append(Artifact(name, path, "0" * 64, "x", path.stat()))
    return found


def _read(archive: Archive, start: int, stop: int) -> bytes:
    async def collect() -> bytes:
        return b"".join([chunk async for chunk in read(archive, start, stop)])

    return asyncio.run(collect())


SIZES = {"b": 0, "a": 1, "c": 512, "d": 513, "e" * 120: 3}


def test_any_stretch_is_a_stretch_of_the_whole(tmp_path: Path):
    archive = build_archive("mrg_x", _artifacts(tmp_path, SIZES))
    whole = _read(archive, 0, archive.size)
    assert len(whole) == archive.size
    for start in range(0, archive.size, 397):
        assert _read(archive, start, start + 700) == whole[start : start + 700]


def test_order_and_time_of_the_files_change_nothing(tmp_path: Path):
    files = _artifacts(tmp_path, SIZES)
    one, other = build_archive("m", files), build_archive("m", reversed(files))
    assert (one.sha256, one.size) == (other.sha256, other.size)
    assert _read(one, 0, one.size) == _read(other, 0, other.size)
    with tarfile.open(fileobj=io.BytesIO(_read(one, 0, one.size))) as archive:
        assert archive.getnames() == [f"m/{name}" for name in sorted(SIZES)]


def test_files_above_eight_gigabytes_have_their_size(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(9 * 2**30)  # sparse: takes no space
    archive = build_archive("m", [Artifact(path.name, path, "0" * 64, "x", path.stat())])
    header = _read(archive, 0, 512)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == 9 * 2**30
    assert len(_read(archive, 9 * 2**30, 9 * 2**30 + 2048)) == 2048


def test_a_file_that_shrinks_breaks_the_download_off(tmp_path: Path):
    files = _artifacts(tmp_path, {"a": 1000})
    archive = build_archive("m", files)
    files[0].path.write_bytes(b"")
    with pytest.raises(OSError, match="became shorter"):
        _read(archive, 0, archive.size)
