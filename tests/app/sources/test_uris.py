"""A URI means one place only, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import SourceNotAllowedError
from app.sources.policy import SourcePolicy
from app.sources.uris import FilePlace, HubPlace, MergePlace, WebPlace, file_uri, parse_uri

POLICY = SourcePolicy(cache_dir=Path("cache"))


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("file:///models/ft/telephone/", FilePlace(Path("/models/ft/telephone"), "telephone")),
        ("file://localhost/m/a%20b", FilePlace(Path("/m/a b"), "a b")),
        ("hf://openai/whisper-tiny", HubPlace("openai/whisper-tiny", None, "whisper-tiny")),
        ("hf://openai/x@refs/pr/1", HubPlace("openai/x", "refs/pr/1", "x")),
        ("hf://gpt2@main", HubPlace("gpt2", "main", "gpt2")),
        ("https://Example.org/a%20b/c/", WebPlace("https://example.org/a%20b/c", "c")),
        ("https://example.org:8443", WebPlace("https://example.org:8443", "example.org")),
        ("merge://mrg_01", MergePlace("mrg_01", "mrg_01")),
    ],
)
def test_a_place_and_a_name_come_of_each_scheme(uri: str, place: object) -> None:
    assert parse_uri(uri, POLICY) == place


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("", "not empty"),
        (f"file:///m/{'n' * 256}", "255 bytes at most"),
        (f"file:///m/{'%C3%A4' * 128}/x", "255 bytes at most"),
        (f"https://example.org/{'n' * 256}", "255 bytes at most"),
        (f"hf://org/{'n' * 256}", "no such long name"),
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
        ("hf://a/b/c", "write hf://"),
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
        ("models/a", "file:///"),
        ("/models/a", "file:///"),
        ("http://example.org/a", "use https"),
        ("s3://bucket/a", "unknown URI scheme 's3'"),
        ("htps://example.org/a", "Did you mean"),
    ],
)
def test_a_uri_that_hides_its_place_is_refused(uri: str, said: str) -> None:
    with pytest.raises(SourceNotAllowedError, match=said):
        parse_uri(uri, POLICY)


@pytest.mark.parametrize(
    "uri", ["https://user:secret@example.org/a", "https://example.org/a?sig=secret"]
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SourceNotAllowedError) as refusal:
        parse_uri(uri, POLICY)
    assert "secret" not in refusal.value.message


def test_a_scheme_that_is_switched_off_is_refused() -> None:
    with pytest.raises(SourceNotAllowedError, match="switched off"):
        parse_uri("hf://a/b", replace(POLICY, schemes=frozenset({"file"})))


def test_plain_paths_are_taken_where_no_roots_are_set() -> None:
    place = parse_uri("models/../base", replace(POLICY, file_roots=None))
    assert place == FilePlace(Path("models/../base"), "base")


@given(st.text(max_size=30))
def test_any_text_is_a_place_without_dots_or_a_refusal(text: str) -> None:
    for scheme in ("file:///", "hf://", "https://", "merge://", ""):
        try:
            place = parse_uri(scheme + text, POLICY)
        except SourceNotAllowedError:
            continue
        if isinstance(place, FilePlace):
            assert place.path.is_absolute()
            assert ".." not in place.path.parts


@given(st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=20))
def test_a_path_survives_its_uri(name: str) -> None:
    path = Path("/models", name.replace("/", "-").replace("\\", "-").replace("%", "-")).absolute()
    if ".." in path.parts or not str(path).isprintable():
        return
    assert parse_uri(file_uri(path), POLICY) == FilePlace(path, path.name)


def test_a_home_that_nobody_has_is_a_path_like_any_other() -> None:
    place = parse_uri("~nobody-has-this-name/x", replace(POLICY, file_roots=None))
    assert place == FilePlace(Path("~nobody-has-this-name/x"), "x")
