"""Local files: what is opened is what was checked, whatever others do to the paths meanwhile."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from threading import Event, Thread

import pytest

from app.contract.errors import SourceChangedError, SourceError, SourceNotAllowedError, StorageError
from app.sources import local
from app.sources.checkpoint import Signature
from app.sources.fetch import fetch
from app.sources.local import open_regular, open_unchanged
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from app.sources.schemes.merge import MergeFolder
from tests.app.sources.conftest import TOKENIZER

Make = Callable[..., Path]
_LIBC = ctypes.CDLL(None, use_errno=True)
_EXCHANGE, _HERE = 2, -100
SECRET = b'{"secret": true}'


def exchange(one: Path, other: Path) -> None:
    """Let two paths change places in one step, as an attacker would."""
    assert _LIBC.renameat2(_HERE, bytes(one), _HERE, bytes(other), _EXCHANGE) == 0


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Let two paths change places all the time; an even number of times in all."""
    stop = Event()

    def swap() -> None:
        for pause in itertools.cycle((0.0, 1e-4, 3e-5, 1e-3)):
            exchange(one, other)
            time.sleep(pause)
            exchange(one, other)
            if stop.is_set():
                return
            time.sleep(pause)

    thread = Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a file that no source may reach."""
    path = tmp_path / "secret.json"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def evil(tmp_path: Path, outside: Path, make_checkpoint: Make) -> Path:
    """Return a checkpoint in which every small file is a link to the file outside."""
    folder = make_checkpoint("evil")
    for name in ("tokenizer.json", "config.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(outside)
    return folder


def test_a_file_swapped_after_its_check_is_not_opened(
    tmp_path: Path,
    make_checkpoint: Make,
    evil: Path,
    policy: SourcePolicy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, check = make_checkpoint("good"), local.allowed_path
    swapped = []

    def check_then_swap(path: Path, *rest: object) -> Path:
        real = check(path, *rest)
        if not swapped:
            swapped.append(exchange(good, evil))
            # A link followed on the way, so that O_NOFOLLOW alone would not help.
            (tmp_path / "models" / "good").rename(tmp_path / "models" / "gone")
            (tmp_path / "models" / "good").symlink_to(tmp_path)
        return real

    monkeypatch.setattr(local, "allowed_path", check_then_swap)
    (good / "secret.json").write_bytes(b"{}")
    with pytest.raises(SourceNotAllowedError, match="outside the folders"):
        open_regular(good / "secret.json", policy.file_roots, "m")


def test_what_was_resolved_is_what_is_read_or_nothing(
    make_checkpoint: Make, evil: Path, outside: Path, policy: SourcePolicy
) -> None:
    good = make_checkpoint("good")
    found = resolve(good.as_uri(), policy, param="base.uri")
    fetched = fetch(found, policy)
    with fetched.opened() as folder:
        exchange(good, evil)
        assert (folder / "tokenizer.json").read_bytes() == TOKENIZER
        assert (folder / "model.safetensors").stat().st_size == fetched.signatures[
            "model.safetensors"
        ].size
    for read in (lambda: fetched.open("tokenizer.json"), lambda: fetch(found, policy)):
        with pytest.raises(SourceChangedError, match=r"(tokenizer|config)\.json") as refusal:
            read()
        assert refusal.value.param == "base.uri"
    with pytest.raises(SourceChangedError), fetched.opened():
        pass
    exchange(good, evil)
    outside.unlink()
    with fetched.open("tokenizer.json") as handle:
        assert handle.read() == TOKENIZER


def test_no_race_ever_reads_a_file_outside_the_roots(
    make_checkpoint: Make, evil: Path, policy: SourcePolicy
) -> None:
    good = make_checkpoint("good")

    def directly() -> FileIO:
        return open_regular(good / "tokenizer.json", policy.file_roots, "m")

    def as_a_source() -> FileIO:
        return fetch(resolve(good.as_uri(), policy), policy).open("tokenizer.json")

    read, until = [], time.monotonic() + 1.0
    with swapping(good, evil):
        while time.monotonic() < until:
            for attempt in (directly, as_a_source):
                with suppress(SourceError), attempt() as handle:
                    read.append(handle.read())
    assert read
    assert set(read) == {TOKENIZER}


def test_only_regular_files_are_opened_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "null").symlink_to("/dev/null")
        for name in ("pipe", "socket", "null", "."):
            with pytest.raises(SourceNotAllowedError, match="a file is needed"):
                open_regular(tmp_path / name, None, "m")
            with pytest.raises(SourceChangedError):
                open_unchanged(tmp_path / name, Signature.of((tmp_path / name).stat()), "m")


@pytest.mark.parametrize("name", ["n" * 256, "n" * 5000, "a\0b", "\ud800", "ä" * 128, "no", "a/b"])
def test_names_that_cannot_be_are_refused_as_such(
    name: str, make_checkpoint: Make, policy: SourcePolicy
) -> None:
    folder = make_checkpoint("m")
    (folder / "a").write_bytes(b"")

    def at(path: Path, roots: tuple[Path, ...] | None) -> MergeFolder:
        found = MergeFolder("merge://m", replace(policy, merge_folder=lambda _: path))
        found.roots = roots
        return found

    for roots in (policy.file_roots, None):
        with pytest.raises(SourceError):
            open_regular(folder / name, roots, "m")
        with pytest.raises(SourceError):
            at(folder / name, roots).find(["config.json"])
        assert at(folder, roots).find([name]) == {}


def test_links_inside_the_roots_are_followed(make_checkpoint: Make, policy: SourcePolicy) -> None:
    folder = make_checkpoint("m")
    (folder.parent / "linked").symlink_to(folder)
    (folder / "link.json").symlink_to("tokenizer.json")
    linked = folder.parent / "linked" / "link.json"
    with open_regular(linked, policy.file_roots, "m") as handle:
        assert handle.read() == TOKENIZER


def test_too_many_open_files_are_no_fault_of_the_source(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    folder = make_checkpoint("m")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(StorageError, match="Too many open files"):
            open_regular(folder / "config.json", policy.file_roots, "m")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
