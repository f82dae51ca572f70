"""A URI means one place only, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import SourceNotAllowedError
from app.sources.policy import SourcePolicy
from app.sources.schemes import open_folder
from app.sources.schemes.file import FileFolder
from app.sources.schemes.folder import SourceFolder
from app.sources.schemes.hf import HubFolder
from app.sources.schemes.https import HttpsFolder
from app.sources.schemes.merge import MergeFolder
from app.sources.uris import file_uri

POLICY = SourcePolicy(cache_dir=Path("cache"))


@pytest.mark.parametrize(
    ("uri", "kind", "name"),
    [
        ("file:///models/ft/telephone/", FileFolder, "telephone"),
        ("FILE://localhost/m/a%20b", FileFolder, "a b"),
        ("hf://openai/whisper-tiny", HubFolder, "whisper-tiny"),
        ("hf://openai/x@refs/pr/1", HubFolder, "x"),
        ("hf://gpt2@main", HubFolder, "gpt2"),
        ("hf://openai/x/checkpoint-500/full@main", HubFolder, "full"),
        ("https://Example.org/a%20b/c/", HttpsFolder, "c"),
        ("https://example.org:8443", HttpsFolder, "example.org"),
        ("merge://mrg_01", MergeFolder, "mrg_01"),
    ],
)
def test_a_folder_and_a_name_come_of_each_scheme(
    uri: str, kind: type[SourceFolder], name: str
) -> None:
    folder = open_folder(uri, POLICY)
    assert (type(folder), folder.name) == (kind, name)


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("https://Example.org/a%20b//c/", "https://example.org/a%20b/c"),
        ("https://example.org:8443", "https://example.org:8443"),
        ("https://[::1]:8443/%C3%A4", "https://[::1]:8443/%C3%A4"),
        ("merge://mrg_01/", "merge://mrg_01"),
    ],
)
def test_a_uri_is_recorded_in_its_normal_form(uri: str, normal: str) -> None:
    assert open_folder(uri, POLICY).resolved == normal


def test_a_repository_and_a_revision_come_of_the_hub() -> None:
    folder = open_folder("hf://openai/x@refs/pr/1", POLICY)
    assert isinstance(folder, HubFolder)
    assert (folder.repo, folder.revision) == ("openai/x", "refs/pr/1")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("", "not empty"),
        (f"file:///m/{'n' * 256}", "255 bytes at most"),
        (f"file:///m/{'%C3%A4' * 128}/x", "255 bytes at most"),
        (f"https://example.org/{'n' * 256}", "255 bytes at most"),
        (f"hf://org/{'n' * 256}", "write hf://"),
        (f"merge://{'n' * 65}", "the merge's id"),
        (f"https://example.org:{'9' * 30}/a", "not a URI"),
        ("file:///m/%ED%A0%80", "not UTF-8"),
        ("file:///models/../etc", r"'\.\.'"),
        ("file:///models/%2e%2e/etc", r"'\.\.'"),
        ("file:///models/%252e%252e/etc", "once at most"),
        ("file:///models/%25252e/etc", "once at most"),
        ("file:///models/a%2fb", "encoded slashes"),
        ("file:///models/a%5cb", "encoded slashes"),
        ("file:///models\\..\\etc", "backslashes"),
        ("file:///models/a%00b", "control characters"),
        ("file:///models/a\0b", "control characters"),
        ("file:///models/a%ff", "not UTF-8"),
        ("file://server/share", "names no host"),
        ("file:models/a", "absolute path"),
        ("file:///models/a?x", "no query"),
        ("file:///models/a#x", "no query"),
        ("hf://", "write hf://"),
        ("hf://a/b/../c", "write hf://"),
        ("hf://a/b/c%2f..%2fd", "write hf://"),
        ("hf://a/b//c", "write hf://"),
        ("hf://datasets/a/b/c", "write hf://"),
        ("hf://../b", "write hf://"),
        ("hf://a/b@", "after @"),
        ("hf://a/b@../../x", "after @"),
        ("hf://a/b?x", "write hf://"),
        ("https://", "needs a host"),
        ("https://exa%6dple.org/a", "needs a host"),
        ("https://exämple.org/a", "needs a host"),
        ("https://example.org:99999/a", "not a URI"),
        ("https://example.org/a/../b", r"'\.\.'"),
        ("merge://", "the merge's id"),
        ("merge://../x", "the merge's id"),
        ("hf:a/b", "write hf://"),
        ("models/a", "file:///"),
        ("/models/a", "file:///"),
        ("http://example.org/a", "use https"),
        ("sftp://bucket/a", "unknown URI scheme 'sftp'"),
        ("htps://example.org/a", "Did you mean"),
    ],
)
def test_a_uri_that_hides_its_place_is_refused(uri: str, said: str) -> None:
    with pytest.raises(SourceNotAllowedError, match=said):
        open_folder(uri, POLICY)


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:secret@example.org/a",
        "https://user:secret@example.org:99999/a?x",
        "https://example.org/a?sig=secret",
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SourceNotAllowedError) as refusal:
        open_folder(uri, POLICY)
    assert "secret" not in refusal.value.message


def test_a_scheme_that_is_switched_off_is_refused() -> None:
    with pytest.raises(SourceNotAllowedError, match="switched off"):
        open_folder("hf://a/b", replace(POLICY, schemes=frozenset({"file"})))


def test_a_refusal_lists_the_schemes_that_are_allowed() -> None:
    some = replace(POLICY, schemes=frozenset({"file", "merge"}))
    for uri in ("hf://a/b", "s3://bucket/a", "models/a"):
        with pytest.raises(SourceNotAllowedError, match="file:///folder or merge://id"):
            open_folder(uri, some)


def test_plain_paths_are_taken_where_no_roots_are_set() -> None:
    folder = open_folder("models/../base", replace(POLICY, file_roots=None))
    assert isinstance(folder, FileFolder)
    assert (folder.path, folder.name) == (Path("models/../base"), "base")


@given(st.text(max_size=30))
def test_any_text_is_a_place_without_dots_or_a_refusal(text: str) -> None:
    for scheme in ("file:///", "hf://", "https://", "merge://", ""):
        try:
            folder = open_folder(scheme + text, POLICY)
        except SourceNotAllowedError:
            continue
        if isinstance(folder, FileFolder):
            assert folder.path.is_absolute()
            assert ".." not in folder.path.parts


@given(st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=20))
def test_a_path_survives_its_uri(name: str) -> None:
    path = Path("/models", name.replace("/", "-").replace("\\", "-").replace("%", "-")).absolute()
    if ".." in path.parts or not str(path).isprintable():
        return
    folder = open_folder(file_uri(path), POLICY)
    assert isinstance(folder, FileFolder)
    assert (folder.path, folder.name) == (path, path.name or "checkpoint")


def test_a_home_that_nobody_has_is_a_path_like_any_other() -> None:
    folder = open_folder("~nobody-has-this-name/x", replace(POLICY, file_roots=None))
    assert isinstance(folder, FileFolder)
    assert folder.path == Path("~nobody-has-this-name/x")
