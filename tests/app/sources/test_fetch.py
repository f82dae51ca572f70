"""Fetched checkpoints: digests, the cache, resumed downloads, and sources that change."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from app.contract.errors import (
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    StorageError,
)
from app.sources import digests
from app.sources.fetch import FetchStoppedError, LocalCheckpoint, fetch
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from tests.app.sources.conftest import TOKENIZER, checkpoint_files

Make = Callable[..., Path]
WEIGHTS = "model.safetensors"


@pytest.fixture
def files(make_checkpoint: Make) -> dict[str, bytes]:
    """Return a checkpoint's files by name."""
    return {path.name: path.read_bytes() for path in make_checkpoint("source").iterdir()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def expected_sha256(files: dict[str, bytes]) -> str:
    listed = sorted([name, sha256(content)] for name, content in files.items())
    return sha256(json.dumps(listed, separators=(",", ":")).encode())


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_back(local: LocalCheckpoint) -> dict[str, bytes]:
    found = {}
    for name in local.paths:
        with local.open(name) as stream:
            found[name] = stream.read()
    return found


def test_local_files_are_used_in_place_and_named_by_digest(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    folder = make_checkpoint()
    local = fetch(resolve(folder.as_uri(), policy), policy)
    assert read_back(local) == read_folder(folder)
    assert local.sha256 == expected_sha256(read_folder(folder))
    assert local.file_sha256[WEIGHTS] == sha256((folder / WEIGHTS).read_bytes())
    assert local.paths[WEIGHTS] == folder / WEIGHTS
    local.verify_unchanged()


def test_libraries_see_known_fields_and_what_was_fetched(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    training = {"auto_map": {"AutoModel": "evil.py"}, "quantization_config": {}}
    folder = make_checkpoint(config=training)
    local = fetch(resolve(folder.as_uri(), policy), policy)
    with local.opened() as opened:
        assert not training.keys() & json.loads((opened / "config.json").read_bytes()).keys()
        assert (opened / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
        (folder / "tokenizer.json").rename(folder / "aside")
        (folder / "tokenizer.json").write_bytes(b"of the host")
        assert (opened / "tokenizer.json").read_bytes() == (folder / "aside").read_bytes()


def test_what_a_checkpoint_lacks_is_the_lenders_whole_tokenizer_or_none_of_it(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    config = json.dumps({"errors": "replace"}).encode()
    files = checkpoint_files()
    base = files | {"tokenizer_config.json": config, "merges.txt": b"#base", "vocab.json": b"{}"}
    bare = {name: files[name] for name in ("config.json", WEIGHTS)}
    bare |= {"merges.txt": b"#its own, without a vocabulary"}
    lender, local = (
        fetch(resolve(make_checkpoint(name, files=given).as_uri(), policy), policy)
        for name, given in (("base", base), ("checkpoint-9", bare))
    )
    with local.opened(lender) as opened:
        found = read_folder(opened)
    assert found["merges.txt"] == b"#base"
    assert found[WEIGHTS] == bare[WEIGHTS]
    assert json.loads(found["tokenizer_config.json"])["errors"] == "replace"
    assert json.loads(found["preprocessor_config.json"])["feature_size"] == 4
    with lender.opened(lender) as opened:
        assert read_folder(opened).keys() >= base.keys()


def test_a_digest_is_kept_until_the_file_changes(
    make_checkpoint: Make, policy: SourcePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint()
    monkeypatch.setattr(digests, "_YOUNG_SECONDS", -1.0)
    first = fetch(resolve(folder.as_uri(), policy), policy)
    read = digests._read
    taken: list[str] = []

    def count(handle: FileIO, progress: Callable[[int], None]) -> str:
        taken.append(Path(f"/proc/self/fd/{handle.fileno()}").readlink().name)
        return read(handle, progress)

    monkeypatch.setattr(digests, "_read", count)
    assert fetch(resolve(folder.as_uri(), policy), policy).sha256 == first.sha256
    assert taken == []
    (folder / "tokenizer.json").write_bytes(b"[]")
    assert fetch(resolve(folder.as_uri(), policy), policy).sha256 != first.sha256
    assert taken == ["tokenizer.json"]


def test_a_digest_of_a_file_just_written_is_not_kept(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    folder = make_checkpoint()
    fetch(resolve(folder.as_uri(), policy), policy)
    assert not (policy.cache_dir / "digests").exists()


@pytest.mark.parametrize("change", ["rewrite", "replace", "remove", "touch"])
def test_a_file_that_changes_while_it_is_used_is_named(
    make_checkpoint: Make, policy: SourcePolicy, change: str
) -> None:
    folder = make_checkpoint()
    found = resolve(folder.as_uri(), policy, param="base")
    local = fetch(found, policy)
    path = folder / WEIGHTS
    content = path.read_bytes()
    if change == "rewrite":
        path.write_bytes(content[:-1] + b"x")
    elif change == "replace":
        (folder / "new").write_bytes(content)
        (folder / "new").replace(path)
    elif change == "remove":
        path.unlink()
    else:
        os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError, match=WEIGHTS) as refusal:
        local.verify_unchanged()
    assert refusal.value.param == "base"
    with pytest.raises(SourceChangedError, match=WEIGHTS) as refusal:
        fetch(found, policy)
    assert refusal.value.param == "base"


def test_a_remote_checkpoint_becomes_a_folder(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    for uri in (stand_in.add_folder("/a", files), "hf://org/m"):
        local = fetch(resolve(uri, web_policy), web_policy)
        assert read_back(local) == files
        assert local.sha256 == expected_sha256(files)
        local.verify_unchanged()


def test_what_was_downloaded_is_not_downloaded_again(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    for uri in (stand_in.add_folder("/a", files), "hf://org/m"):
        found = resolve(uri, web_policy)
        first = fetch(found, web_policy)
        stand_in.requests.clear()
        again = fetch(found, web_policy)
        assert stand_in.requests == []
        assert (again.paths, again.sha256) == (first.paths, first.sha256)
    blobs_kept = [path for path in (web_policy.cache_dir / "blobs").rglob("*") if path.is_file()]
    assert len(blobs_kept) == len(files)


def test_a_file_that_two_sources_share_stays_as_the_first_one_got_it(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    uris = (stand_in.add_folder("/a", files), stand_in.add_folder("/b", files), "hf://org/m")
    fetched = [fetch(resolve(uri, web_policy), web_policy) for uri in uris]
    assert [read_back(local) for local in fetched] == [files] * 3


def test_without_a_validator_it_is_downloaded_again(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.etags = False
    found = resolve(stand_in.add_folder("/a", files), web_policy)
    fetch(found, web_policy)
    stand_in.requests.clear()
    changed = TOKENIZER.replace(b"w1", b"v1")
    stand_in.files["/a/tokenizer.json"] = changed
    assert read_back(fetch(found, web_policy))["tokenizer.json"] == changed


def test_a_damaged_cache_heals(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    found = resolve(stand_in.add_folder("/a", files), web_policy)
    local = fetch(found, web_policy)
    blob = local.paths[WEIGHTS]
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    assert read_back(fetch(found, web_policy)) == files


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_taken_up_again(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes], ranges: bool
) -> None:
    found = resolve(stand_in.add_folder("/a", files), web_policy)
    stand_in.ranges = ranges
    stand_in.cuts[f"/a/{WEIGHTS}"] = [1000, 700]
    stand_in.requests.clear()
    seen: list[tuple[int, int]] = []
    local = fetch(found, web_policy, progress=lambda done, total: seen.append((done, total)))
    assert read_back(local) == files
    assert seen[-1] == (found.size_bytes, found.size_bytes)
    asked = [headers.get("range") for path, headers in stand_in.requests if WEIGHTS in path]
    assert asked == [None, "bytes=1000-", "bytes=1700-" if ranges else "bytes=1000-"]
    assert list((web_policy.cache_dir / "parts").iterdir()) == []


def test_a_download_never_goes_on_with_bytes_that_may_be_others(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    found = resolve(stand_in.add_folder("/a", files), web_policy)
    stand_in.cuts[f"/a/{WEIGHTS}"] = [1000]
    # The whole file again, and no word on whether it is still the same.
    stand_in.ranges = stand_in.etags = False
    with pytest.raises(SourceChangedError, match=WEIGHTS):
        fetch(found, web_policy)


def test_a_download_goes_on_in_another_process_run(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    found = resolve("hf://org/m", web_policy)
    [path] = [path for path in stand_in.files if path.startswith("/cdn/")]
    stand_in.cuts[path] = [1000, 0, 0]
    with pytest.raises(SourceUnreachableError):
        fetch(found, web_policy)
    stand_in.requests.clear()
    assert read_back(fetch(found, web_policy)) == files
    assert [headers["range"] for _, headers in stand_in.requests if "range" in headers] == [
        "bytes=1000-"
    ] * 2  # the hub's own address, then the one it redirects to


def test_a_file_that_changed_on_the_server_is_refused(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    found = resolve(stand_in.add_folder("/a", files), web_policy, param="base")
    stand_in.files[f"/a/{WEIGHTS}"] = files[WEIGHTS][:-1] + b"x"
    with pytest.raises(SourceChangedError, match=WEIGHTS) as refusal:
        fetch(found, web_policy)
    assert refusal.value.param == "base"
    stand_in.files[f"/a/{WEIGHTS}"] = files[WEIGHTS] + b"x"
    with pytest.raises(SourceChangedError, match=WEIGHTS):
        fetch(found, web_policy)
    del stand_in.files[f"/a/{WEIGHTS}"]
    with pytest.raises(SourceNotFoundError, match=WEIGHTS):
        fetch(found, web_policy)


def test_bytes_other_than_the_hub_listed_are_refused_and_forgotten(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    stand_in.add_model("org/m", files)
    found = resolve("hf://org/m", web_policy)
    [path] = [path for path in stand_in.files if path.startswith("/cdn/")]
    stand_in.files[path] = files[WEIGHTS][:-1] + b"x"
    with pytest.raises(SourceChangedError, match="sha256"):
        fetch(found, web_policy)
    stand_in.files[path] = files[WEIGHTS]
    assert read_back(fetch(found, web_policy)) == files


def test_a_fetch_stops_when_asked_and_keeps_what_it_has(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes], make_checkpoint: Make
) -> None:
    for uri in (stand_in.add_folder("/a", files), make_checkpoint().as_uri()):
        found = resolve(uri, web_policy)
        with pytest.raises(FetchStoppedError):
            fetch(found, web_policy, should_stop=lambda: True)
        assert fetch(found, web_policy, should_stop=lambda: False).sha256 == expected_sha256(files)


def test_a_full_disk_is_told_before_the_download(
    stand_in: Any,
    web_policy: SourcePolicy,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = resolve(stand_in.add_folder("/a", files), web_policy)
    full = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(StorageError, match="10 free") as refusal:
        fetch(found, web_policy)
    assert refusal.value.retryable


def test_a_disk_that_fills_up_leaves_no_part(
    stand_in: Any,
    web_policy: SourcePolicy,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = resolve(stand_in.add_folder("/a", files), web_policy)

    def fill(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(StorageError, match="No space left"):
        fetch(found, web_policy)
    assert list((web_policy.cache_dir / "parts").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    found = resolve(stand_in.add_folder("/a", files), web_policy)
    web_policy.cache_dir.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="cache"):
        fetch(found, web_policy)


def test_threads_that_fetch_the_same_download_it_once(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    found = resolve(stand_in.add_folder("/a", files), web_policy)
    stand_in.requests.clear()
    fetched: list[LocalCheckpoint] = []
    threads = [
        threading.Thread(target=lambda: fetched.append(fetch(found, web_policy))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 4
    assert len({local.sha256 for local in fetched}) == 1
    assert len(stand_in.paths(WEIGHTS)) == 1
    assert read_back(fetched[0]) == files


_FETCH = """
import sys
from pathlib import Path
from app.sources.fetch import FetchStoppedError, LocalCheckpoint, fetch
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
url, host, cache = sys.argv[1:]
policy = SourcePolicy(Path(cache), allowed_hosts=frozenset({host}), allow_private_addresses=True)
print(fetch(resolve(url, policy), policy).sha256)
"""


def test_processes_that_fetch_the_same_download_it_once(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    url = stand_in.add_folder("/a", files)
    command = [sys.executable, "-c", _FETCH, url, stand_in.host, str(web_policy.cache_dir)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {run.communicate()[0].strip() for run in runs} == {expected_sha256(files)}
    whole = [headers for path, headers in stand_in.requests if WEIGHTS in path]
    assert sum("range" not in headers for headers in whole) == 1


def test_the_cache_is_for_its_owner_only(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes]
) -> None:
    local = fetch(resolve(stand_in.add_folder("/a", files), web_policy), web_policy)
    assert web_policy.cache_dir.stat().st_mode & 0o077 == 0
    assert local.paths[WEIGHTS].stat().st_mode & 0o222 == 0


def test_the_sha256_does_not_depend_on_where_it_came_from(
    stand_in: Any, web_policy: SourcePolicy, files: dict[str, bytes], make_checkpoint: Make
) -> None:
    stand_in.add_model("org/m", files)
    uris = [make_checkpoint().as_uri(), stand_in.add_folder("/a", files), "hf://org/m"]
    unlimited = replace(web_policy, file_roots=None)
    assert len({fetch(resolve(uri, unlimited), unlimited).sha256 for uri in uris}) == 1
