from __future__ import annotations

import json
import time
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
def test_json_is_parsed_unchanged_also_as_yaml(value: Any):
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


HALF_A_MEGABYTE = 500_000


def _fill(unit: str, around: str = "{}") -> str:
    return around.replace("{}", unit * (HALF_A_MEGABYTE // len(unit)))


HEAVY: dict[str, tuple[str, Literal["json", "yaml"]]] = {
    "a key twice, at the end": (
        "{" + ",".join(f'"k{i}":1' for i in range(40_000)) + ',"k39999":2}', "json",
    ),
    "the same in YAML": ("\n".join(f"k{i}: 1" for i in range(40_000)) + "\nk39999: 2", "yaml"),
    "unlike directives": ("".join(f"%TAG !a{i}! x:\n" for i in range(30_000)) + "--- a", "yaml"),
    "a long list": (_fill("a,", "[{}a]"), "yaml"),
    "maps in a list": (_fill("- a: b\n"), "yaml"),
    "a long list of numbers": (_fill("1,", "[{}1]"), "json"),
    "brackets": (_fill("["), "json"),
    "brackets in YAML": (_fill("["), "yaml"),
    "question marks": (_fill("? "), "yaml"),
    "a number": (_fill("9"), "json"),
    "many long numbers": (_fill("9" * 4_000 + ",", "[{}1]"), "json"),
    "almost a number": (_fill("1", "{}x"), "yaml"),
    "blank lines": (_fill("\n", '"a{}"'), "yaml"),
    "escapes": (_fill("\\u0041", '"{}"'), "json"),
}  # fmt: skip


@pytest.mark.parametrize("shape", HEAVY)
def test_a_large_body_of_any_shape_is_read_in_linear_time(shape: str):
    text, form = HEAVY[shape]
    begun = time.process_time()
    with suppress(MalformedBodyError):
        parse_document(text.encode(), form)
    # Quadratic ones took minutes; all together take one second.
    assert time.process_time() - begun < 5


def test_more_values_than_any_request_has_are_refused():
    for form in ("json", "yaml"):
        parse_document(b"[" + b"1," * 49_000 + b"1]", form)
        with pytest.raises(MalformedBodyError, match="more than 50,000 values"):
            parse_document(b"[" + b"1," * 120_000 + b"1]", form)


@given(st.text(max_size=400))
def test_errors_are_always_valid_unicode(name: str):
    twice = json.dumps(name)
    with pytest.raises(MalformedBodyError) as refused:
        parse_document(f"{{{twice}: 1, {twice}: 2}}".encode(), "json")
    refused.value.message.encode()
    assert "\0" not in refused.value.message
