from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import MalformedBodyError
from app.services.documents import MAX_DEPTH, parse_document

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
def test_json_comes_back_as_it_was_and_is_yaml_too(value: Any):
    content = json.dumps(value, ensure_ascii=False).encode()
    assert parse_document(content, "json") == value
    assert parse_document(content, "yaml") == value


@given(st.binary(max_size=200), st.sampled_from(["json", "yaml"]))
def test_any_bytes_are_a_document_or_a_refusal(content: bytes, form: Literal["json", "yaml"]):
    with suppress(MalformedBodyError):
        parse_document(content, form)


@given(st.text("[]{}:,&*!|>-? \n\"'#%@`abc1.e", max_size=40))
def test_any_punctuation_is_yaml_or_a_refusal(text: str):
    with suppress(MalformedBodyError):
        parse_document(text.encode(), "yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("2026-11-23", "2026-11-23"),
        ("1e-3", 0.001), ("1:30", "1:30"), ("007", 7), ("0x10", "0x10"), ("1_000", "1_000"),
        ("~", None), ("true", True), (".5", 0.5), (".inf", ".inf"), ("<<", "<<"), ("1.", 1.0),
        ("+3", 3), ("-", [None]), ("mrg_1", "mrg_1"), ("=", "="),
    ],
)  # fmt: skip
def test_yaml_words_mean_what_they_mean_in_json(text: str, value: Any):
    found = parse_document(text.encode(), "yaml")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_depth_has_a_limit(form: Literal["json", "yaml"]):
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    parse_document(deepest, form)
    with pytest.raises(MalformedBodyError, match="levels deep"):
        parse_document(b"[" + deepest + b"]", form)


def test_the_place_of_a_fault_is_named():
    with pytest.raises(MalformedBodyError, match=r"line 2, column 6"):
        parse_document(b'{\n"a": }', "json")
    with pytest.raises(MalformedBodyError, match=r"line 3, column 1"):
        parse_document(b"a: 1\nb: [", "yaml")
    with pytest.raises(MalformedBodyError, match='"a" is given twice'):
        parse_document(b'{"a": 1, "b": {"a": 1}, "a": 2}', "json")
